"""A small transformer over CLIP's image tokens and question tokens: [CLS ; prompts ; image ; question].

CLIP does not have a module that fuses image and question; this is one. Its inputs are the states of both towers' last
blocks, which already contain the towers' positions. It is randomly initialized, so it has to be trained once: on
the first task, or beforehand (`backbone/assets/tiny_fusion` for the tiny CLIP, by scripts/train_tiny_fusion.py).
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone import MammothBackbone, answer, register_backbone
from backbone.attention import Parts, run, split
from backbone.clip import CLIPBackbone, load_clip
from backbone.clip_visual import both_attentions, check_size
from utils import json_text
from utils.errors import UserError
from utils.flags import path, positive_int
from utils.pair import Inputs, Pair
from utils.ranks import dealt

ASSETS = Path(__file__).parent / "assets"
SHIPPED = (ASSETS / "tiny_fusion", ASSETS / "tiny_clip_cluttered" / "fusion")
FRESH = {"width": 256, "layers": 4, "heads": 8}
SIZE_FLAGS = tuple(f"fusion_{size}" for size in FRESH)
TOY_FUSION = {"fusion_weights": "none", "fusion_width": 16, "fusion_layers": 1, "fusion_heads": 2}  # part of a TOY_ARGS


def add_fusion_args(parser: ArgumentParser) -> None:
    """The flags of the fusion transformer on CLIP."""
    parser.add_argument(
        "--fusion_weights",
        type=path,
        default="auto",
        help="auto: the shipped weights if they match this CLIP, else random ones; none: random; or a folder",
    )
    words = "width of a new fusion transformer", "number of its blocks", "number of its heads"
    for flag, text, usual in zip(SIZE_FLAGS, words, FRESH.values(), strict=True):
        parser.add_argument(f"--{flag}", type=positive_int, help=f"{text} (default: {usual})")


class Block(nn.Module):
    """A pre-norm block, called as `backbone.attention.Parts` are."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: Tensor, **how) -> tuple[Tensor, Tensor | None]:
        block = Parts(
            self.ln_1,
            split(self.qkv),
            self.heads,
            lambda mixed, x: x + self.out(mixed),
            lambda x: x + self.mlp(self.ln_2(x)),
        )
        return block(x, seen, **how)


class FusionTransformer(nn.Module):
    """Image tokens (B, P, Wi), question tokens (B, L, Wt) and prompts (B, n, W) -> state (B, W) of the CLS token."""

    def __init__(self, image_width: int, text_width: int, width: int = 256, layers: int = 4, heads: int = 8):
        super().__init__()
        if width % heads:
            raise UserError(f"--fusion_width {width} is not a multiple of --fusion_heads {heads}")
        self.width, self.n_layers, self.fresh = width, layers, True
        self.sizes = {"width": width, "layers": layers, "heads": heads}
        self.image_in = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))
        self.text_in = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.kinds = nn.Parameter(0.02 * torch.randn(3, width))  # added to prompts, image tokens, question tokens
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    @dealt("image", "text", "text_seen", "prompts", "prefixes")
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_seen: Tensor,
        prompts: Tensor | None = None,
        prefixes: dict[int, Tensor] | None = None,
        prompt_states: bool = False,
        attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | list[Tensor]]:
        """CLS state (B, W); with `prompt_states` also the states (B, n, W) of the prompts, with `attention` also a map
        (B, heads, R, R) of each block.

        text_seen (B, L) is False after the end of a question; prefixes are (B, 2, P, W) by number of the block.
        """
        n = len(image)
        parts = [self.cls.expand(n, 1, -1)]
        if prompts is not None:
            parts.append(prompts + self.kinds[0])
        front = sum(part.shape[1] for part in parts)
        parts += [self.image_in(image) + self.kinds[1], self.text_in(text) + self.kinds[2]]
        x = torch.cat(parts, dim=1)
        seen = torch.cat([text_seen.new_ones(n, x.shape[1] - text.shape[1]), text_seen], dim=1)
        x, maps = run(self.blocks, x, seen, front if prompt_states else 1, prefixes, attention)
        x = self.norm(x)
        if attention:
            return x[:, 0], maps
        return (x[:, 0], x[:, 1:]) if prompt_states else x[:, 0]


def question_mask(tokens: Tensor) -> Tensor:
    """(B, L): True up to and including the end of text, which has the largest id."""
    return torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(dim=1, keepdim=True)


def fusion_of(clip: CLIPBackbone, args: Namespace) -> FusionTransformer:
    """The fusion that the flags choose."""
    return make_fusion(clip, args.fusion_weights, *(getattr(args, flag) for flag in SIZE_FLAGS))


def make_fusion(clip: CLIPBackbone, weights: str = "auto", width=None, layers=None, heads=None) -> FusionTransformer:
    """The fusion named by `--fusion_weights`: auto (the shipped one if it matches this CLIP), none, or a folder."""
    if not clip.n_image_tokens:
        raise UserError(f"{clip.name} has a ResNet image tower without tokens; choose a ViT, e.g. ViT-B/16")
    asked = {k: v for k, v in {"width": width, "layers": layers, "heads": heads}.items() if v is not None}
    shipped = next((folder for folder in SHIPPED if fits(folder, clip)), None) if weights == "auto" else None
    folder = shipped or Path(weights).expanduser()
    if weights == "none" or (weights == "auto" and not shipped):
        return FusionTransformer(clip.vision_width, clip.text_width, **FRESH | asked)
    config = read_config(folder)
    if config.get("clip_sha256") != clip.sha256:
        raise UserError(
            f"the fusion in {folder} was trained on a CLIP other than {clip.name}: use --fusion_weights none"
        )
    for name, value in asked.items():
        if value != config["sizes"][name]:
            raise UserError(
                f"--fusion_{name} {value}: the weights in {folder} have {config['sizes'][name]}; "
                "leave the flag out, or use --fusion_weights none"
            )
    with torch.random.fork_rng(devices=[]):  # its initial values are replaced: loading does not change seeded streams
        fusion = FusionTransformer(clip.vision_width, clip.text_width, **config["sizes"])
    try:
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        fusion.load_state_dict(state)
        fusion.fresh = False
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}/model.safetensors cannot be read as fusion weights: {problem}") from None
    return fusion


def fits(folder: Path, clip: CLIPBackbone) -> bool:
    """Whether shipped weights were trained on this CLIP."""
    return (folder / "config.json").is_file() and read_config(folder).get("clip_sha256") == clip.sha256


def read_config(folder: Path) -> dict:
    """config.json of a folder with fusion weights: sizes, and the sha256 of the CLIP they belong to."""
    try:
        return json_text.parse((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--fusion_weights {folder}: no readable config.json there ({type(error).__name__}); use a folder made by "
            "scripts/train_tiny_fusion.py, auto, or none"
        ) from None


class ClipFusion(MammothBackbone):
    """Both frozen towers, the fusion transformer and a linear classifier: what the gradient baselines tune."""

    def __init__(self, num_classes: int, clip: CLIPBackbone, fusion: FusionTransformer):
        super().__init__()
        self.clip, self.fusion = clip.requires_grad_(False), fusion
        null = clip.tokenize("")  # the question for images without text
        self.register_buffer("null_question", null[:, : int(null.argmax()) + 1], persistent=False)
        clip.tokenizer = clip.preprocess = None  # pairs come as token ids and preprocessed images
        self.feature_dim = self.embed_dim = fusion.width
        self.classifier = nn.Linear(fusion.width, num_classes)

    def tokens(self, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """What the fusion reads: image tokens, question tokens, and which of these are not padding."""
        image, text = (x.image, x.text) if isinstance(x, Pair) else (x, self.null_question.expand(len(x), -1))
        check_size(image, self.clip.resolution)
        with torch.no_grad():
            image, states = self.clip.image_tokens(image).float(), self.clip.text_tokens(text).float()
        return image, states, question_mask(text)

    def forward(self, x: Inputs, returnt: str = "out"):
        features = self.fusion(*self.tokens(x))
        return answer(returnt, self.classifier, features, [features])

    def with_maps(self, x: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C), and what each block of the fusion attends to (B, heads, R, R)."""
        state, maps = self.fusion(*self.tokens(x), attention=True)
        return self.classifier(state), maps

    def attention(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        """(B, n) of the frozen towers to the patches, (B, L) to the words."""
        return both_attentions(self.clip, x)


@register_backbone("clip-fusion")
def clip_fusion(
    num_classes: int, clip_backbone: Path = "ViT-B/32", base_path: str = "./data/", fusion_weights: Path = "auto"
) -> ClipFusion:
    """Frozen towers of CLIP + fusion transformer (--fusion_weights auto, none or a folder) + linear classifier."""
    clip = load_clip(clip_backbone, base_path=base_path)
    return ClipFusion(num_classes, clip, make_fusion(clip, fusion_weights))


UNSEEN = -1e4  # logit of an answer without a row in the head


class GrowingHead(nn.Module):
    """A linear layer whose rows are answers, added when first seen; row r is for `answers[r]`."""

    def __init__(self, width: int, n_answers: int):
        super().__init__()
        self.n_answers = n_answers
        self.weight, self.bias = nn.Parameter(torch.zeros(0, width)), nn.Parameter(torch.zeros(0))
        self.register_buffer("answers", torch.zeros(0, dtype=torch.long))

    def grow(self, answers: Tensor) -> None:
        """Append a row for each new answer (ids); the old rows are unchanged."""
        answers = answers.unique().to(self.answers.device)
        new = answers[~torch.isin(answers, self.answers)]
        width = self.weight.shape[1]
        fresh = (2 * torch.rand(len(new), width) - 1).to(self.weight) * width**-0.5  # as nn.Linear is initialized
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), fresh]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), self.bias.new_zeros(len(new))]))
        self.answers = torch.cat([self.answers, new])

    def rows_of(self, answers: Tensor) -> Tensor:
        """Row (B,) of each answer id (B,)."""
        place = torch.full((self.n_answers,), -1, device=answers.device)
        place[self.answers] = torch.arange(len(self.answers), device=answers.device)
        return place[answers]

    def rows(self) -> Tensor:
        """A copy (rows, W + 1) of weight and bias."""
        return torch.cat([self.weight, self.bias[:, None]], dim=1).detach().clone()

    def forward(self, states: Tensor) -> Tensor:
        """States (B, W) -> logits (B, rows)."""
        return nn.functional.linear(states, self.weight, self.bias)

    def spread(self, logits: Tensor) -> Tensor:
        """Logits (B, rows) in the order of answer ids (B, n_answers), UNSEEN for those without a row."""
        full = logits.new_full((len(logits), self.n_answers), UNSEEN)
        full[:, self.answers] = logits
        return full
