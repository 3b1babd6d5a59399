"""Shared by methods on the fused sequence: tokens of both frozen towers, each image and question encoded once.

While training and evaluating, a batch is a tensor of references (source, row, task) to cached tokens instead of
images: nothing is read or augmented. Tokens are kept in half precision; images that are handed in directly are
encoded immediately, in full precision.
"""

import hashlib
from argparse import ArgumentParser
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from backbone.clip import CLIPBackbone
from backbone.clip_encoder import ClipImageEncoder
from backbone.clip_files import sha256_state
from backbone.fusion import add_fusion_args, fusion_of, question_mask
from backbone.hub import HubBackbone, HubImageEncoder
from backbone.hub_flags import add_hub_args
from models.utils.vlm_model import EVAL_ROWS, VLMModel, add_vlm_args
from utils.conf import warn_once
from utils.errors import UserError
from utils.features import HALF, FeatureStore, Sources
from utils.pair import Inputs, Pair


def add_fused_args(parser: ArgumentParser) -> ArgumentParser:
    """The flags of a method on the fused sequence."""
    add = add_vlm_args(parser, names=False).add_argument
    add_fusion_args(parser)
    add(
        "--key_feature",
        choices=["clip", "class", "mean", "early"],
        default="clip",
        help="features that select keys: clip, the pooled features of CLIP (or of ViLT or BLIP); class, the class "
        "token and the end of the question before projection; mean, means of tokens; early, means of patches after the "
        "first block and of words",
    )
    add(
        "--fusion_train",
        choices=["first", "always", "never"],
        help="tasks that train the fusion (default: first; never with ViLT and BLIP, which are pretrained)",
    )
    add_hub_args(parser, "vqa_backbone", ("vilt", "blip"))
    return parser


class Fused(NamedTuple):
    """A batch as the fusion transformer takes it, and the features that choose prompts."""

    image: Tensor  # (B, P, Wi)
    text: Tensor  # (B, L, Wt)
    seen: Tensor  # (B, L), False after the end of a question
    visual: Tensor  # (B, Dv)
    textual: Tensor  # (B, Dt)
    task: Tensor | None = None  # (B,) true task, -1 if unknown; None for images handed in directly
    cells: Tensor | None = None  # (B, 2) group of the image and wording of the question, where the stream knows them


class Questions:
    """The distinct questions of a sample list, for the FeatureStore."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.place = tokens.unique(dim=0, return_inverse=True)  # (Q, L), (N,)
        self.fingerprint = hashlib.sha256(self.tokens.contiguous().numpy()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def images(self, rows: Tensor) -> Tensor:
        """Token ids (B, L): the store asks every list for its images."""
        return self.tokens[rows]


class QuestionEncoder:
    """The frozen text tower for the FeatureStore: token ids (B, L) -> states (B, L * W) of its last block."""

    deterministic, batch_size, precision = True, 256, HALF

    def __init__(self, net: CLIPBackbone | HubBackbone, length: int):
        self.net, self.dim = net, length * net.text_width
        if isinstance(net, HubBackbone):
            self.key = f"{net.kind}|text tokens|{net.sha256}"
            return
        state = {k: v for k, v in net.clip.state_dict().items() if not k.startswith("visual.")}
        self.key = f"clip|text tokens|{sha256_state(state)}|{net.activation}|{net.dtype}"

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        return self.net.text_tokens(tokens.to(self.net.device)).flatten(1).float().cpu()


class FusedModel(VLMModel):
    """`self.net.fusion` is the fusion transformer; `read` gives a batch of references or images as a Fused."""

    FUSES_TEXT = True
    NOT_TRIED = {
        "fusion_weights": "the shipped ones have other sizes; tests/test_clumo.py",
        "blip_weights": "no weights of BLIP are embedded; tests/test_blip.py makes tiny ones",
        "blip_first": "no weights of BLIP are embedded; tests/test_blip.py makes tiny ones",
        **dict.fromkeys(
            ("vqa_backbone", "vilt_weights", "vilt_resolution"),
            "no weights of ViLT are embedded; tests/test_vilt.py makes tiny ones",
        ),
    }

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        net, hub = self.net, isinstance(self.net, HubBackbone)
        self.fusion_train = args.fusion_train or ("never" if hub else "first")
        if hub:
            net.fusion = net.make_fusion(trained=self.fusion_train != "never")
        else:
            net.fusion = fusion_of(net, args)
        net.fusion.to(self.device).requires_grad_(self.fusion_train == "always")
        self.encoder = HubImageEncoder(net) if hub else ClipImageEncoder(net, "tokens")
        self.encoder.precision = HALF
        if hub and args.key_feature in ("class", "early"):
            raise UserError(f"--key_feature {args.key_feature} is of CLIP, not of {net.kind}: choose clip or mean")
        self.early = ClipImageEncoder(net, "early") if args.key_feature == "early" else None
        self.questions = FeatureStore(self.store.root, self.store.mode, progress=self.store.progress)
        self.sources = Sources()
        null = net.tokenize("")  # the question about images that come without one
        self.null = null[:, : int(null.argmax()) + 1]

    def set_fusion_training(self, first: bool) -> None:
        """Whether this task trains the fusion, by --fusion_train."""
        when = self.fusion_train
        self.net.fusion.requires_grad_(when == "always" or (when == "first" and first))
        if first and when == "never" and self.net.fusion.fresh:
            warn_once(
                "the fusion transformer is fresh and --fusion_train never leaves it random: give --fusion_train first"
            )

    def get_parameters(self):
        return self.parameters()

    def checkpoint_skip(self):
        here = {"net.clip", "net.tokenizer", "net.preprocess", "net.causal_mask"}
        if isinstance(self.net, HubBackbone):  # as loaded: everything except a trained fusion
            kept = {"fusion"} if self.fusion_train != "never" else set()
            here |= {f"net.{name}" for name, _ in self.net.named_children() if name not in kept}
        return {"store", "questions", "sources", "encoder", "early", "null", *here}

    def compiled_parts(self):
        return [self.net.fusion]

    @property
    def question_forwards(self) -> int:
        """Distinct questions that went through the text tower."""
        return self.questions.forwards

    # batches as references

    def train_on_cached_tokens(self, dataset) -> None:
        """The task's training batches are references from now on; order, labels and extra fields stay."""
        loader, split = dataset.train_loader, dataset.train_loader.dataset
        if not hasattr(loader, "epoch") or not hasattr(split, "rows"):
            raise UserError(
                f"model {self.NAME} reads cached tokens: {self.dataset.NAME} must make its loaders with load() "
                "or store_masked_loaders"
            )
        dataset.train_loader = loader.with_inputs(self.references(split, dataset.c_task))

    def references(self, split, task: int) -> Tensor:
        """(N, 3): which sample list, which row, which task."""
        rows, samples = split.rows, split.samples
        source = self.sources.number(samples, lambda: (samples, *self.questions_of(samples)))
        source = torch.full_like(rows, source)
        return torch.stack([source, rows, torch.full_like(rows, task)], dim=1)

    def questions_of(self, samples) -> tuple[Questions, QuestionEncoder]:
        """The questions of a sample list, with what encodes them; without any, all get the null question."""
        text = getattr(samples.data, "text", None)
        asked = Questions(self.null.expand(len(samples), -1) if text is None else text)
        return asked, QuestionEncoder(self.net, asked.tokens.shape[1])

    def cached_inputs(self, loader):
        split = loader.dataset
        if not hasattr(split, "samples"):
            return None
        tests = [other.dataset for other in self.dataset.test_loaders]
        return self.references(split, next((t for t, other in enumerate(tests) if other is split), -1))

    # reading

    @torch.no_grad()
    def read(self, x: Inputs) -> Fused:
        """References (B, 3), images (B, 3, H, W) or Pairs -> tokens and key features."""
        if isinstance(x, Tensor) and x.dim() == 2:
            return self.read_rows(x)
        image, tokens = (x.image, x.text) if isinstance(x, Pair) else (x, self.null.expand(len(x), -1))
        tokens = tokens.to(self.device)
        self.forward_counter.add(image)
        states = self.net.image_tokens(image).float(), self.net.text_tokens(tokens).float()
        return self.fused(*states, tokens, None if self.early is None else self.net.early_feature(image).float())

    def read_rows(self, references: Tensor) -> Fused:
        """The same from the cache; what is missing is encoded."""
        source, rows, _ = references.cpu().unbind(1)
        samples, texts, encoder = self.sources[int(source[0])]
        image = self.store.rows(samples, rows, self.encoder).view(-1, *self.encoder.shape)
        early = None if self.early is None else self.store.rows(samples, rows, self.early).to(self.device)
        questions = texts.place[rows]
        text = self.questions.rows(texts, questions, encoder).view(len(rows), -1, self.net.text_width)
        image, text, tokens = (t.to(self.device, non_blocking=True) for t in (image, text, texts.tokens[questions]))
        batch = self.fused(image.float(), text.float(), tokens, early)
        cells = getattr(samples, "cells", None)
        return batch._replace(task=references[:, 2], cells=None if cells is None else cells[rows].to(self.device))

    def fused(self, image: Tensor, text: Tensor, tokens: Tensor, early: Tensor | None) -> Fused:
        seen = question_mask(tokens)
        if self.args.key_feature in ("mean", "early"):
            visual = image.mean(1) if early is None else early
            textual = (text * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
        elif isinstance(self.net, HubBackbone):
            visual, textual = normalize(image[:, 0], dim=1), normalize(text[:, 0], dim=1)
        else:
            end = text[torch.arange(len(text), device=text.device), tokens.argmax(1)]
            if self.args.key_feature == "class":
                return Fused(image, text, seen, normalize(image[:, 0], dim=1), normalize(end, dim=1))
            visual = normalize(self.net.project_image(image[:, 0].to(self.net.dtype)).float(), dim=1)
            textual = normalize(self.net.project_text(end.to(self.net.dtype)).float(), dim=1)
        return Fused(image, text, seen, visual, textual)

    def key_features(self, references: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, Dv) and (N, Dt) that choose prompts, of references (N, 3)."""
        parts = [self.read(part) for part in references.split(EVAL_ROWS)]
        return torch.cat([part.visual for part in parts]), torch.cat([part.textual for part in parts])
