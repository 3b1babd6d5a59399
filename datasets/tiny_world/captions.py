"""English for scene descriptions: captions in several phrasings, and questions with their answers."""

from __future__ import annotations

import numpy as np

from datasets.tiny_world import world as w
from datasets.tiny_world.bank import KINDS
from datasets.tiny_world.rng import uniform
from datasets.tiny_world.scenes import SCENE_PHRASES, SCENES

NAMES = tuple({"lightning": "lightning bolt"}.get(kind, kind) for kind in KINDS)
_IRREGULAR = {
    "fish": "fish",
    "leaf": "leaves",
    "butterfly": "butterflies",
    "hourglass": "hourglasses",
    "cross": "crosses",
}
PLURALS = tuple(
    _IRREGULAR.get(name, name + ("es" if name.endswith("h") else "s")).replace("snowmans", "snowmen") for name in NAMES
)
STYLE_WORDS = ("", "mosaic", "sketch", "pale picture", "dark picture")
OPENINGS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a photo of",
    "this is a photo of",
    "there is",
    "a drawing of",
    "a good photo of",
    "a bad photo of",
    "a close-up photo of",
    "X X X X",
    "X X",
    "a rendering of",
    "a cropped photo of",
    "",
)


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _pattern_word(pattern: int) -> str:
    return w.PATTERNS[pattern]


class _Coins:
    """Named random numbers of the pictures of one batch, for wording only."""

    def __init__(self, spec: dict[str, np.ndarray]):
        self.seed, self.index, self.columns = int(spec["seed"][0]) if len(spec["seed"]) else 0, spec["index"], {}

    def __call__(self, name: str, i: int) -> float:
        if name not in self.columns:
            self.columns[name] = uniform(self.seed, self.index, f"words {name}")
        return float(self.columns[name][i])

    def pick(self, name: str, i: int, options):
        return options[int(self(name, i) * len(options))]


def noun_phrase(spec: dict, i: int, which: int, pattern: bool, colour: bool, many: int = 1) -> str:
    """ "striped red fish", without article; plural when `many` > 1."""
    kind = spec["kind"][i, which]
    words = [_pattern_word(spec["pattern"][i, which])] if pattern else []
    words += [w.COLOURS[spec["colour"][i, which]]] if colour else []
    return " ".join([*words, NAMES[kind] if many == 1 else PLURALS[kind]])


def _single(spec: dict, coin: _Coins, i: int) -> str:
    body = noun_phrase(spec, i, 0, coin("pattern", i) < 0.7, coin("colour", i) < 0.6)
    return article(body)


def _several(spec: dict, coin: _Coins, i: int) -> str:
    number = int(spec["count"][i])
    if coin("count as", i) < 0.2:  # the number alone
        return f"{w.COUNTS[number - 1]} object" + "s" * (number > 1)
    body = noun_phrase(spec, i, 0, coin("pattern", i) < 0.35, coin("colour", i) < 0.5, number)
    return f"{w.COUNTS[number - 1]} {body}"


def _pair(spec: dict, coin: _Coins, i: int) -> str:
    with_colour = coin("colour", i) < 0.4
    first, second = (article(noun_phrase(spec, i, k, False, with_colour)) for k in (0, 1))
    relation = spec["relation"][i]
    if coin("turned", i) < 0.5:  # the same fact told from the other object
        first, second, relation = second, first, relation ^ 1
    if coin("joined", i) < 0.12:
        return f"{first} and {second}"
    phrase = w.RELATIONS[relation]
    if relation < 2 and coin("long", i) < 0.4:
        phrase = f"to the {phrase}"
    return f"{first} {phrase} {second}"


def _caption(spec: dict, coin: _Coins, i: int) -> str:
    layout = spec["layout"][i]
    scene = SCENE_PHRASES[spec["scene"][i]]
    if layout == w.EMPTY:
        body = SCENES[spec["scene"][i]] if coin("scene as", i) < 0.5 else f"an empty scene {scene}"
    elif layout == w.TEXTURE:
        texture = w.TEXTURES[w.TEXTURE_IDS.index(spec["pattern"][i, 0])]
        return f"a {texture} texture"
    else:
        body = {w.SINGLE: _single, w.COUNT: _several, w.PAIR: _pair}[layout](spec, coin, i)
        if coin("scene", i) < 0.4:
            body = f"{body} {scene}"
    style = spec["style"][i]
    if 0 < style < len(STYLE_WORDS) and coin("style", i) < 0.6:
        opening = f"a {STYLE_WORDS[style]} of"
    else:
        opening = coin.pick("opening", i, OPENINGS)
    return f"{opening} {body}".strip() + "." * (coin("stop", i) < 0.5)


def captions(spec: dict[str, np.ndarray]) -> list[str]:
    """One caption per picture; about one in eight is a question with its answer, which trains the question words."""
    coin = _Coins(spec)
    asked = [
        coin("asked", i) < 0.12 and spec["layout"][i] in (w.SINGLE, w.COUNT, w.PAIR) for i in range(len(spec["index"]))
    ]
    out = []
    for i, question in enumerate(asked):
        if question:
            text, answer = ask(spec, i, coin.pick("question kind", i, allowed_kinds(spec, i)), coin("answer", i))
            out.append(f"{text} {answer}" + "." * (coin("stop", i) < 0.5))
        else:
            out.append(_caption(spec, coin, i))
    return out


QUESTION_KINDS = ("object", "attribute", "count", "relation", "logic", "scene")


def allowed_kinds(spec: dict, i: int) -> tuple[str, ...]:
    """The question kinds that a picture can answer without doubt."""
    layout = spec["layout"][i]
    if layout == w.SINGLE:
        return ("object", "attribute", "count", "logic", "scene")
    if layout == w.COUNT:
        return ("object", "attribute", "count", "scene")
    return ("relation", "logic", "scene") if layout == w.PAIR else ("scene",)


def ask(spec: dict, i: int, kind: str, u: float) -> tuple[str, str]:
    """A question of `kind` on picture i and its answer; u in [0, 1) settles what is asked."""
    number = int(spec["count"][i])
    many = number > 1 and spec["layout"][i] == w.COUNT
    name, verb = (PLURALS if many else NAMES)[spec["kind"][i, 0]], "are" if many else "is"
    if kind == "object":
        return "what object is in the picture?", NAMES[spec["kind"][i, 0]]
    if kind == "attribute":
        if u < 0.5:
            return f"what color {verb} the {name}?", w.COLOURS[spec["colour"][i, 0]]
        return f"what pattern {'do' if many else 'does'} the {name} have?", _pattern_word(spec["pattern"][i, 0])
    if kind == "count":
        return f"how many {PLURALS[spec['kind'][i, 0]]} are there?", w.COUNTS[number - 1]
    if kind == "scene":
        return "where is the picture?", SCENES[spec["scene"][i]]
    if kind == "relation":
        return _ask_relation(spec, i, u)
    return _ask_logic(spec, i, u)


def _ask_relation(spec: dict, i: int, u: float) -> tuple[str, str]:
    """Half the questions turn the two objects round, so the words alone do not tell."""
    turned = int(u * 2)
    first, second = (NAMES[spec["kind"][i, k]] for k in ((1, 0) if turned else (0, 1)))
    answer = w.RELATIONS[spec["relation"][i] ^ turned]
    return f"where is the {first}, seen from the {second}?", answer


def _ask_logic(spec: dict, i: int, u: float) -> tuple[str, str]:
    """Is there a ...? Half the answers are yes; the wrong ones name another kind or another colour."""
    pair = spec["layout"][i] == w.PAIR
    which = int(u * 2) if pair else 0
    kind, colour = spec["kind"][i, which], spec["colour"][i, which]
    step = int(u * 4096) % 64
    if (u * 64) % 1 < 0.5:
        return f"is there {article(noun_phrase(spec, i, which, False, step % 2 == 0))}?", "yes"
    if step % 2 == 0:
        other = (colour + 1 + step % (len(w.COLOURS) - 1)) % len(w.COLOURS)
        return f"is there {article(w.COLOURS[other] + ' ' + NAMES[kind])}?", "no"
    other = (kind + 1 + step % (len(NAMES) - 1)) % len(NAMES)
    while other in spec["kind"][i]:
        other = (other + 1) % len(NAMES)
    return f"is there {article(NAMES[other])}?", "no"
