"""What CLIP methods share: the network, features of images and names, scores, and the frozen tower's cache."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch.nn.functional import normalize

from backbone.clip import ClipImageEncoder, add_clip_args, load_clip
from models.utils.continual_model import ContinualModel
from utils.batch_transforms import BatchTransform, Fixed
from utils.errors import UserError
from utils.features import FeatureStore
from utils.pair import Inputs, Pair


def add_vlm_args(parser: ArgumentParser, default: str = "ViT-L/14") -> ArgumentParser:
    """The flags of every CLIP method; `default` names the CLIP of the method."""
    add_clip_args(parser, default)
    parser.add_argument("--prompt_template", help='sentence around a class name, with {} for it (default: the dataset\'s first)')
    return parser


class VLMModel(ContinualModel):
    """A method on CLIP. `self.net` is the CLIPBackbone; `forward` takes images (B, 3, H, W) or features (B, D).

    A method that can name classes it has not seen defines `future_forward(x)`, logits over all names.
    While the image tower is frozen, each image is encoded once for all runs (`image_features`, `cached_inputs`).
    """

    BUILDS_OWN_NET = True  # the dataset's default backbone is not made for it
    FROZEN_TOWER = True

    @staticmethod
    def get_parser(parser: ArgumentParser) -> ArgumentParser:
        return add_vlm_args(parser)

    def __init__(self, backbone, loss, args: Namespace, transform, dataset=None):
        net = load_clip(args.clip_backbone, getattr(args, "device", None) or "cpu", args.clip_dtype,
                        getattr(args, "base_path", None), bool(args.clip_download))
        if self.FROZEN_TOWER:
            net.requires_grad_(False)
        super().__init__(net, loss, args, transform, dataset)
        self.to(self.device)
        self.weights_sha256 = net.sha256
        mode = getattr(args, "features", "ram") or "ram"
        root = Path(getattr(args, "base_path", None) or "./data") / "features"
        self.store = FeatureStore(root, mode, progress=not getattr(args, "non_verbose", False))
        self.encoder = ClipImageEncoder(net) if self.FROZEN_TOWER else None

    def checkpoint_skip(self) -> set[str]:
        return {"net", "store", "encoder"} if self.FROZEN_TOWER else {"store", "encoder"}

    @property
    def image_forwards(self) -> int:
        return self.store.forwards + self.forward_counter.images

    # images ----------------------------------------------------------------------------------------------------

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
            raise UserError(f"model {self.NAME} trains its image tower: its features cannot be kept")
        features = self.store.rows(split.samples, split.rows, self.encoder)
        return features.to(self.device), split.targets.to(self.device)

    def cached_inputs(self, loader) -> torch.Tensor | None:
        if self.encoder is None or not hasattr(loader.dataset, "samples"):
            return None
        return self.image_features(loader.dataset)[0]

    def encode(self, x: Inputs) -> torch.Tensor:
        """Raw image features (B, D); features pass through."""
        x = x.image if isinstance(x, Pair) else x
        return x if x.dim() == 2 else self.net.encode_image(x).float()

    # names -----------------------------------------------------------------------------------------------------

    def templates(self) -> list[str]:
        """--prompt_template, or the first sentence that the dataset declares."""
        template = self.args.prompt_template
        if template is not None and "{}" not in template:
            raise UserError(f"--prompt_template '{template}' has no {{}} for the class name")
        return [template] if template else self.dataset.get_prompt_templates()[:1]

    @torch.no_grad()
    def text_features(self, names: list[str], templates: list[str] | None = None) -> torch.Tensor:
        """Unit features (C, D) of class names: the mean over templates of unit text features, scaled to unit length."""
        templates = templates or self.templates()
        prompts = [template.format(name) for template in templates for name in names]
        features = normalize(self.net.encode_text(self.net.tokenize(prompts)).float(), dim=1)
        return normalize(features.view(len(templates), len(names), -1).mean(0), dim=1)

    def logits(self, features: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) * cosine of image features (B, D) with unit class keys (C, D)."""
        return self.net.logit_scale.detach() * normalize(features, dim=1) @ keys.T
