"""Shared by CLIP methods: the network, features of images and names, scores, and the frozen tower's cache."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch.nn.functional import normalize

from backbone.clip import CLIPBackbone, add_clip_args, load_clip
from backbone.clip_encoder import ClipImageEncoder
from backbone.clip_visual import fuse
from backbone.hub_flags import chosen, load_hub, refuse_idle
from models.utils.continual_model import ContinualModel
from utils.batch_transforms import BatchTransform, Fixed
from utils.errors import UserError
from utils.features import FeatureStore
from utils.flags import sentence
from utils.pair import Inputs, Pair
from utils.settings import option

TEXT_ROWS = 1024  # texts encoded at once
EVAL_ROWS = 256  # samples whose tokens are in memory at once outside of training


def add_vlm_args(parser: ArgumentParser, names: bool = True) -> ArgumentParser:
    """The flags of a CLIP method; `names` tells whether it reads class names. The stream says which CLIP is default."""
    add_clip_args(parser)
    if names:
        parser.add_argument(
            "--prompt_template",
            type=sentence,
            help="template for class names, with {} for the name (default: the dataset's own)",
        )
    return parser


class VLMModel(ContinualModel):
    """A method on CLIP. `self.net` is the CLIPBackbone; `forward` takes images (B, 3, H, W) or features (B, D).

    On a stream of Pairs a method uses only the image, unless it sets FUSES_TEXT.
    A method that can name classes it has not seen defines `future_forward(x)`, logits over all names.
    While the image tower is frozen, each image is encoded once for all runs (`image_features`, `cached_inputs`).
    """

    BUILDS_OWN_NET = True  # the dataset's default backbone is not built for it
    FROZEN_TOWER = True
    FUSES_TEXT = False  # features of a Pair are [image, text, image * text]: `backbone.clip_visual.fuse`
    NOT_TRIED = {
        "clip_backbone": "only one CLIP is embedded",
        "clip_dtype": "half precision is for GPUs",
        "clip_download": "tests have no network",
    }

    @staticmethod
    def get_parser(parser: ArgumentParser) -> ArgumentParser:
        return add_vlm_args(parser)

    def __init__(self, backbone, loss, args: Namespace, transform, dataset=None):
        refuse_idle(args)
        if chosen(args) == "clip":
            net = load_clip(
                args.clip_backbone,
                getattr(args, "device", None) or "cpu",
                args.clip_dtype,
                getattr(args, "base_path", None),
                bool(args.clip_download),
            )
        else:
            net = load_hub(args)
        if (kind := option(args, "image_transform", "shorter")) == "crop_raw":
            raise UserError("--image_transform crop_raw: a CLIP normalizes its images; use crop")
        net.set_resize(kind)
        if self.FROZEN_TOWER:
            net.requires_grad_(False)
        super().__init__(net, loss, args, transform, dataset)
        self.to(self.device)
        self.weights_sha256 = net.sha256
        self.prompt_template = getattr(args, "prompt_template", None)  # not every method offers the flag
        has_text = self.dataset.HAS_TEXT
        self.looks_at = "both" if self.FUSES_TEXT and has_text else "image"
        mode = getattr(args, "features", "ram") or "ram"
        root = Path(getattr(args, "base_path", None) or "./data") / "features"
        self.store = FeatureStore(root, mode, progress=not getattr(args, "non_verbose", False))
        self.encoder = ClipImageEncoder(net) if self.FROZEN_TOWER and isinstance(net, CLIPBackbone) else None

    def touches_task_start(self) -> bool:
        return True  # the loaders' transforms

    def checkpoint_skip(self) -> set[str]:
        return {"net", "store", "encoder"} if self.FROZEN_TOWER else {"store", "encoder"}

    def compiled_parts(self):
        return [self.net.clip.visual]

    @property
    def image_forwards(self) -> int:
        return self.store.forwards + self.forward_counter.images

    @property
    def feature_dim(self) -> int:
        """Width of what `encode` and `image_features` give."""
        return self.net.embed_dim * (3 if self.looks_at == "both" else 1)

    # images

    def meta_begin_task(self, dataset) -> None:
        self.change_transform(dataset)
        super().meta_begin_task(dataset)

    def change_transform(self, dataset) -> None:
        """Test images of the newest task, and training images of a frozen tower, are prepared as CLIP expects."""
        self.use_clip_preprocessing(dataset.test_loaders[-1].dataset)
        if self.FROZEN_TOWER and dataset.train_loader is not None:
            self.use_clip_preprocessing(dataset.train_loader.dataset)

    def use_clip_preprocessing(self, split) -> None:
        in_memory = hasattr(split, "batch_form") and split.batch_form() is not None
        split.transform = BatchTransform([Fixed(self.net.normalize_images)]) if in_memory else self.net.preprocess

    def image_features(self, split) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw features (N, D) and labels (N,) of a split, without augmentation; each image is encoded once."""
        if self.encoder is None:
            raise UserError(f"model {self.NAME} trains its image tower: its features cannot be cached")
        features = self.store.rows(split.samples, split.rows, self.encoder).to(self.device)
        if self.looks_at != "image":
            features = self.with_text(features, split.samples.data.text[split.rows])
        return features, split.targets.to(self.device)

    def labeled(self, dataset) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw features (N, D) and labels (N,) of the task's labeled training images."""
        features, labels = self.image_features(dataset.train_loader.dataset)
        return features[labels >= 0], labels[labels >= 0]

    def cached_inputs(self, loader) -> torch.Tensor | None:
        if self.encoder is None or not hasattr(loader.dataset, "samples"):
            return None
        return self.image_features(loader.dataset)[0]

    def encode(self, x: Inputs) -> torch.Tensor:
        """Raw image features (B, D), with the text where the method fuses it; features pass through."""
        images = x.image if isinstance(x, Pair) else x
        if images.dim() == 2:
            return images
        self.forward_counter.add(images)
        features = self.net.encode_image(images).float()
        return features if not isinstance(x, Pair) or self.looks_at == "image" else self.with_text(features, x.text)

    def with_text(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Fused features (B, 3D) of image features and token ids (B, L), or those of the text alone (B, D)."""
        text = self.token_features(tokens)
        return text if self.looks_at == "text" else fuse(image, text)

    @torch.no_grad()
    def token_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Raw text features (B, D) of token ids (B, L); each distinct text is encoded once."""
        distinct, place = tokens.unique(dim=0, return_inverse=True)
        parts = [self.net.encode_text(part).float() for part in distinct.split(TEXT_ROWS)]
        return torch.cat(parts)[place.to(self.device)]

    # names

    def templates(self) -> list[str]:
        """--prompt_template, or the first sentence that the dataset declares."""
        return [self.prompt_template] if self.prompt_template else self.dataset.get_prompt_templates()[:1]

    def class_templates(self, every: bool = False) -> list[list[str]]:
        """Sentences of each class: --prompt_template, or those the dataset gives it, the first or every one."""
        if self.prompt_template:
            return [self.templates()] * self.num_classes
        return [own if every else own[:1] for own in self.dataset.class_templates()]

    @torch.no_grad()
    def text_features(self, names: list[str], templates: list[str] | list[list[str]] | None = None) -> torch.Tensor:
        """Unit features (C, D) of class names: the mean over templates of unit text features, scaled to unit length.

        `templates` are sentences for all names, or a list of sentences for each. By default the dataset's names get
        those of their class, other names those of `templates`.
        """
        if templates is None:
            templates = self.class_templates() if names == self.dataset.get_class_names() else self.templates()
        each = templates if isinstance(templates[0], list) else [templates] * len(names)
        prompts = [template.format(name) for name, own in zip(names, each, strict=True) for template in own]
        place = torch.tensor([c for c, own in enumerate(each) for _ in own], device=self.device)
        parts = self.net.tokenize(prompts).split(TEXT_ROWS)
        features = torch.cat([normalize(self.net.encode_text(part).float(), dim=1) for part in parts])
        total = torch.zeros(len(names), features.shape[1], device=self.device)
        return normalize(total.index_add_(0, place, features), dim=1)

    @property
    def can_probe(self) -> bool:
        """Whether `net` is a whole CLIP, so that any names and captions can be scored (--probe)."""
        return isinstance(self.net, CLIPBackbone) and self.net.preprocess is not None

    def probe_keys(self, names: list[str], templates: list[list[str]]) -> torch.Tensor:
        """Unit features (C, D) of names outside the stream, through the text tower as it is now."""
        return self.text_features(names, templates)

    def probe_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit features (N, D) of captions; one that is too long loses its last words."""
        fitting = []
        for text in texts:
            words = text.split()
            while len(words) > 1 and not self._fits(" ".join(words)):
                words.pop()
            fitting.append(" ".join(words))
        return self.text_features(fitting, [["{}"]] * len(fitting))

    def _fits(self, text: str) -> bool:
        try:
            return len(self.net.tokenize(text)) == 1
        except UserError:
            return False

    def logits(self, features: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) * cosine of image features (B, D) with unit class keys (C, D)."""
        return self.net.logit_scale.detach() * normalize(features, dim=1) @ keys.T
