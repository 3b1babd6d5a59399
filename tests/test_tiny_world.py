"""The picture world, its captions, questions and streams, the tiny tokenizer, and the training script."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backbone.tiny_tokenizer import TinyTokenizer, _bpe, build_pieces, full_pieces
from datasets.tiny_world import captions as words
from datasets.tiny_world import streams, world
from datasets.tiny_world.bank import FIRST_DIGIT
from datasets.tiny_world.render import render
from scripts.tiny_training import orthogonal
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "backbone" / "assets" / "tiny_clip"


@pytest.fixture(scope="module")
def train_script():
    spec = importlib.util.spec_from_file_location("train_tiny_clip", ROOT / "scripts" / "train_tiny_clip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]


# ---- images


def test_pinned_checksums():
    """Exact bytes: pixels come from tables and single IEEE operations only, so no tolerance is needed."""
    every_style = world.sample(11, np.arange(9), layout=world.SINGLE, style=np.arange(9))
    every_layout = world.sample(12, np.arange(5), layout=np.arange(5))
    digits = world.sample(13, np.arange(10), 7, layout=world.DIGIT, kind=FIRST_DIGIT + np.arange(10), scene=0, style=0)
    assert [digest(render(s)) for s in (every_style, every_layout, digits)] == PINNED


PINNED = ["2f1d3887ab71666f", "270f1422d43f463d", "caaa56e5e0ceba16"]


def test_a_picture_depends_on_its_index_alone():
    """Any subset, order and batch size gives the same image."""
    whole = render(world.sample(3, np.arange(150)))
    pick = np.array([149, 3, 70, 4])
    assert torch.equal(render(world.sample(3, pick)), whole[pick])


def test_thread_count_does_not_matter():
    before = torch.get_num_threads()
    spec = world.sample(4, np.arange(36), style=np.arange(36) % 9)
    try:
        torch.set_num_threads(1)
        one = render(spec)
        torch.set_num_threads(2)
        assert torch.equal(render(spec), one)
    finally:
        torch.set_num_threads(before)


def test_strength_zero_of_noise_is_the_flat_picture():
    flat = world.sample(5, np.arange(8), layout=world.SINGLE, style=0)
    noisy = dict(flat, style=np.full(8, world.STYLES.index("noisy")))
    assert torch.equal(render(noisy, strength=0.0), render(flat))
    assert not torch.equal(render(noisy, strength=0.5), render(flat))


def test_objects_stand_where_the_relation_says():
    spec = world.sample(6, np.arange(400), layout=world.PAIR)
    dx, dy = spec["cx"][:, 0] - spec["cx"][:, 1], spec["cy"][:, 0] - spec["cy"][:, 1]
    holds = np.stack([dx < -0.3, dx > 0.3, dy < -0.3, dy > 0.3], 1)
    assert holds[np.arange(400), spec["relation"]].all()
    across = np.where(spec["relation"] < 2, dy, dx)
    assert np.abs(across).max() < 0.3
    assert (spec["relation"][::2] == spec["relation"][1::2] ^ 1).all()  # twins: same objects, opposite relation
    assert (spec["kind"][::2] == spec["kind"][1::2]).all()


def test_each_counted_object_adds_paint():
    """n objects of an image are n separate changes to its background."""
    spec = world.sample(7, np.arange(60), layout=world.COUNT, style=0, count=4)
    last = render(dict(spec, count=np.zeros(60, dtype=np.int64))).int()
    for n in range(1, 5):
        now = render(dict(spec, count=np.full(60, n))).int()
        changed = ((now - last).abs().amax(1) > 30).flatten(1).sum(1)
        assert (changed > 20).all(), n
        last = now


# ---- what pre-training never sees


def test_held_out_combinations_never_appear_in_pre_training():
    spec = world.sample(1, np.arange(30_000))
    pairs = world.held_out_patterns()
    assert len({tuple(p) for p in pairs}) == 60
    assert np.bincount(pairs[:, 1]).tolist() == [10] * 6 and set(np.bincount(pairs[:, 0])) == {1, 2}
    objects = np.isin(spec["layout"], [world.SINGLE, world.COUNT, world.PAIR])
    held = np.zeros((40, 6), dtype=bool)
    held[tuple(pairs.T)] = True
    kind, pattern, colour = (spec[k][objects] for k in ("kind", "pattern", "colour"))
    assert not held[kind, pattern].any()
    assert world.held_out_colours().sum() == 100 and not world.held_out_colours()[kind, colour].any()
    assert spec["style"].max() < world.N_TRAINED_STYLES and (spec["kind"] < FIRST_DIGIT).all()
    said = " ".join(words.captions({k: v[:8000] for k, v in spec.items()}))
    for k, p in pairs:
        name = rf"{world.PATTERNS[p]}( \w+)? ({words.NAMES[k]}|{words.PLURALS[k]})\b"
        assert not [m.group() for m in re.finditer(name, said) if (m.group(1) or " red")[1:] in world.COLOURS], name


def test_permitted_combinations_all_appear():
    """The gaps are the held-out ones and no others."""
    spec = world.sample(1, np.arange(60_000))
    single = spec["layout"] == world.SINGLE
    seen = np.zeros((40, 6), dtype=bool)
    seen[spec["kind"][single, 0], spec["pattern"][single, 0]] = True
    assert seen.sum() == 180


# ---- captions and questions


def test_captions_tell_the_truth_about_counts_and_relations():
    spec = world.sample(8, np.arange(600), style=0)
    for i, text in enumerate(words.captions(spec)):
        if "?" in text:
            continue
        number = [n for n, word in enumerate(world.COUNTS, 1) if f" {word} " in f" {text} "]
        if spec["layout"][i] == world.COUNT:
            assert number == [spec["count"][i]], text
        if spec["layout"][i] == world.PAIR and " and " not in text:
            relation = next(r for r in world.RELATIONS if r in text)
            before = text.split(relation)[0]
            turned = words.NAMES[spec["kind"][i, 1]] in before and words.NAMES[spec["kind"][i, 0]] not in before
            assert world.RELATIONS[spec["relation"][i] ^ turned] == relation, text


@pytest.mark.parametrize("kind", ["relation", "logic", "count"])
def test_answers_are_balanced(kind):
    data = streams.clove_tiny_function(words.QUESTION_KINDS.index(kind), train=True)
    answers, counts = np.unique(data["answer"], return_counts=True)
    assert len(answers) == {"relation": 4, "logic": 2, "count": 4}[kind]
    assert counts.max() / counts.sum() < 1 / len(answers) + 0.06


def test_annotators_disagree_but_the_majority_is_right():
    answers = ["red", "three", "fish", "yes"] * 50
    given = streams.annotators(answers, 0, np.arange(200))
    right = np.array([g.count(a) for g, a in zip(given, answers, strict=True)])
    assert all(len(g) == streams.N_ANNOTATORS for g in given)
    assert right.min() == 8 and right.max() == 10
    assert max(n for g in given for n in (g.count(x) for x in set(g)) if n < 8) <= 2  # who agrees on a mistake
    mistakes = [next((x for x in g if x != a), a) for g, a in zip(given, answers, strict=True)]
    soft = np.mean([min(g.count(m) / 3, 1) for g, m in zip(given, mistakes, strict=True)])
    exact = np.mean([m == a for m, a in zip(mistakes, answers, strict=True)])
    assert exact + 0.25 < soft < exact + 0.45  # always giving the likely mistake earns some soft credit


# ---- streams


@pytest.mark.parametrize("build", [streams.seq_tiny, streams.mm_tiny, lambda t: streams.mtil_tiny("signs", t)])
def test_streams_are_balanced_and_train_differs_from_test(build):
    train, test = build(True), build(False)
    n = len(train["names"])
    assert (train["labels"].bincount() == len(train["labels"]) // n).all() and len(train["labels"].unique()) == n
    side = 64 if "cells" in train else 48
    assert train["images"].dtype == torch.uint8 and train["images"].shape[1:] == (3, side, side)
    train_rows = {row.tobytes() for row in train["images"].flatten(1).numpy()}
    assert not any(row.tobytes() in train_rows for row in test["images"].flatten(1).numpy())
    assert torch.equal(build(False)["images"], test["images"])


def test_seq_tiny_classes_are_the_held_out_pairs():
    assert {tuple(p) for p in streams.seq_tiny_pairs()} == {tuple(p) for p in world.held_out_patterns()}
    assert len(set(streams.seq_tiny_names())) == 60


def test_mtil_orders_are_permutations_of_the_domains():
    assert all(sorted(order) == sorted(streams.MTIL_DOMAINS) for order in streams.MTIL_ORDERS.values())
    assert streams.MTIL_ORDERS["I"] != streams.MTIL_ORDERS["II"]


def test_mm_evidence_is_the_kind_and_nothing_else():
    data, kinds = streams.mm_tiny(True), streams.mm_tiny_kinds()
    assert sorted(kinds.ravel()) == list(range(40))
    shown, told = data["evidence"] != 1, data["evidence"] != 0
    assert 0.7 < shown.float().mean() < 0.8 and 0.55 < told.float().mean() < 0.75
    said = {word: torch.zeros(streams.MM_CLASSES) for word in (*world.COLOURS, *world.PATTERNS, "snow", "photo")}
    for text, label, has in zip(data["captions"], data["labels"], told, strict=True):
        named = {k for k, name in enumerate(words.NAMES) if f" {name} " in f"{text} "}
        assert named <= set(kinds[label]) and len(named) == int(has) and "group" not in text, text
        for word in said:
            said[word][label] += f" {word} " in text.replace(".", " ")
    for word, counts in said.items():  # spread evenly: chi-square of 19 degrees of freedom, one in 10,000 above 50
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 50, word


# ---- tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return TinyTokenizer(build_pieces(["a photo of a striped fish.", "two keys", "X"]))


STRANGE = [
    "zebra",
    "naïve café",
    "日本語 text",
    "🙂",
    "a_b-c d'e",
    "   spaced\tout  ",
    "ANTIDISESTABLISHMENTARIANISM",
    "3.14%",
]


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_tokenises_and_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids and 0 < min(ids) and max(ids) < tokenizer.start < tokenizer.end == tokenizer.vocab_size - 1
    assert tokenizer.decode(ids) == _bpe().decode(_bpe().encode(text)).strip()


def test_every_single_byte_is_kept(tokenizer):
    assert all(b in tokenizer.ids and b + "</w>" in tokenizer.ids for b in _bpe().byte_encoder.values())


def test_kept_pieces_are_whole_and_others_are_split_along_their_merges(tokenizer):
    assert [tokenizer.pieces[i - 1] for i in tokenizer.encode("Two keys, a FISH")] == full_pieces("Two keys, a FISH")
    split = [tokenizer.pieces[i - 1] for i in tokenizer.encode("two zebras")]
    assert split[0] == "two</w>" and len(split) > 2 and "".join(split) == "".join(full_pieces("two zebras"))


def test_tokenize_pads_marks_ends_and_refuses_long_texts(tokenizer):
    rows = tokenizer.tokenize(["a fish", ""], 6)
    assert rows.shape == (2, 6) and rows.dtype == torch.long
    assert rows[:, 0].eq(tokenizer.start).all() and rows.argmax(1).tolist() == [3, 1] and rows[1, 2:].eq(0).all()
    with pytest.raises(UserError, match="a photo of a striped fish"):
        tokenizer.tokenize("a photo of a striped fish", 5)
    assert tokenizer.tokenize("a photo of a striped fish", 5, truncate=True)[0, -1] == tokenizer.end


def test_vocabulary_survives_its_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "vocab.json")
    assert TinyTokenizer.load(tmp_path / "vocab.json").ids == tokenizer.ids


# ---- shipped weights


def test_shipped_weights_score_what_their_card_says(train_script):
    config = json.loads((ASSETS / "config.json").read_text())
    weights = ASSETS / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == config["sha256"]
    claimed = float(re.search(r"zero-shot on seq-tiny, seed 0: ([\d.]+) %", (ASSETS / "CARD.md").read_text()).group(1))
    tokenizer = TinyTokenizer.load(ASSETS / "vocab.json")
    assert tokenizer.vocab_size == config["model"]["vocab_size"]
    model, _ = train_script.build_model("small", tokenizer.vocab_size)
    model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    data = streams.seq_tiny(False)
    with torch.no_grad():
        pictures = train_script.normalise(data["images"]).split(100)
        image = torch.cat([train_script.image_features(model, part)[1] for part in pictures])
        texts = [[t.format(name) for name in data["names"]] for t in data["templates"]]
        text = sum(
            torch.nn.functional.normalize(
                train_script.text_features(model, tokenizer.tokenize(t, config["model"]["context_length"])), dim=1
            )
            for t in texts
        )
    score = 100 * float(((image @ text.T).argmax(1) == data["labels"]).float().mean())
    assert abs(score - claimed) < 1.0


def test_usual_template_words_are_whole_pieces_that_captions_train():
    tokenizer = TinyTokenizer.load(ASSETS / "vocab.json")
    said = set(
        " ".join(words.captions(world.sample(1, np.arange(4000))))
        .replace(".", " . ")
        .replace("?", " ? ")
        .lower()
        .split()
    )
    for word in "a photo of picture an image . x the good bad what is where how many there color ? in".split():
        assert f"{word}</w>" in tokenizer.ids and word in said, word


# ---- training script


@pytest.fixture(scope="module")
def caption_tokenizer():
    return TinyTokenizer(build_pieces(words.captions(world.sample(1, np.arange(2000)))))


def _tiny_run(script, tokenizer):
    torch.manual_seed(0)
    args = script.parse(["--out", "unused", "--size", "nano", "--steps", "10", "--batch", "32"])
    model, shape = script.build_model("nano", tokenizer.vocab_size)
    heads = torch.nn.ModuleDict({k: torch.nn.Linear(shape["vision_width"], n) for k, (n, _) in script.HEADS.items()})
    return args, model, heads, script.build_optimisers(model, heads, 1e-3, "muon")


def _advance(script, tokenizer, run, step):
    args, model, heads, optimisers = run
    for optimiser in optimisers:
        optimiser.zero_grad()
    script.loss_of(model, heads, tokenizer, args, step).backward()
    for optimiser in optimisers:
        optimiser.step()


def test_resuming_a_training_run_changes_nothing(train_script, caption_tokenizer, tmp_path):
    tokenizer = caption_tokenizer
    straight = _tiny_run(train_script, tokenizer)
    for step in range(2):
        _advance(train_script, tokenizer, straight, step)
    train_script.save_checkpoint(tmp_path / "c.safetensors", *straight[1:], 2)
    resumed = _tiny_run(train_script, tokenizer)
    assert train_script.load_checkpoint(tmp_path / "c.safetensors", *resumed[1:]) == 2
    for run in (straight, resumed):
        _advance(train_script, tokenizer, run, 2)
    for a, b in zip(straight[1].parameters(), resumed[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_cheap_towers_equal_those_of_clip(train_script, tokenizer):
    torch.manual_seed(0)
    model, _ = train_script.build_model("nano", tokenizer.vocab_size)
    images = torch.randn(3, 3, 48, 48)
    tokens = tokenizer.tokenize(["a fish", "two striped keys", "x"], train_script.CONTEXT)
    with torch.no_grad():
        assert (train_script.image_features(model, images)[1] - model.encode_image(images)).abs().max() < 1e-5
        assert (train_script.text_features(model, tokens) - model.encode_text(tokens)).abs().max() < 1e-5


def test_same_captions_are_not_pushed_apart(train_script):
    """With two equal captions the least loss is the entropy of an even split, reached by equal features."""
    eye, tokens = torch.eye(3)[[0, 0, 1]], torch.tensor([[1, 2], [1, 2], [1, 3]])
    loss = train_script.contrastive(eye, eye, tokens, torch.tensor(np.log(100.0)))
    assert abs(float(loss) - 2 / 3 * np.log(2)) < 1e-4


def test_every_picture_is_trained_on_once(train_script):
    drawn = np.concatenate([train_script.batch_indices(step, 10, 8) for step in range(10)])
    assert (drawn == np.arange(7 * 4 + 3 * 8)).all()


def test_muon_step_is_nearly_orthogonal():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(48, 16)))
    assert values.min() > 0.6 and values.max() < 1.3
