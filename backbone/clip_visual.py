"""CLIP's towers with a linear classifier, so that gradient baselines start from the weights that CLIP methods use."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

from backbone import MammothBackbone, answer, register_backbone
from backbone.clip import CLIPBackbone, load_clip, patch_tokens, run_tower
from utils.errors import UserError
from utils.pair import Inputs, Pair


def fuse(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Features (B, 3D) of images with texts: both unit vectors and their product, each with entries of size about 1."""
    image, text = (normalize(x, dim=-1) * x.shape[-1] ** 0.5 for x in (image, text))
    return torch.cat([image, text, image * text], dim=-1)


class ClipVisual(MammothBackbone):
    """`features` are CLIP's raw image features; images come preprocessed for CLIP. The text of a Pair is
    ignored: this network sees only the image."""

    def __init__(self, num_classes: int, clip: CLIPBackbone):
        super().__init__()
        self.visual, self.resolution = clip.clip.visual, clip.resolution
        self.feature_dim = self.embed_dim = clip.embed_dim
        self.classifier = nn.Linear(clip.embed_dim, num_classes)

    def forward(self, x: Inputs, returnt: str = "out"):
        image = x.image if isinstance(x, Pair) else x
        check_size(image, self.resolution)
        features = self.visual(image.to(self.visual.conv1.weight.dtype)).float()
        return answer(returnt, self.classifier, features, [features])

    def attention(self, x: Inputs) -> tuple[torch.Tensor, None]:
        """(B, n) to the patches; texts are ignored."""
        return patch_attention(self.visual, x.image if isinstance(x, Pair) else x), None


class ClipFused(MammothBackbone):
    """Both towers and a linear classifier on [image, text, image * text]; the input is a Pair."""

    def __init__(self, num_classes: int, clip: CLIPBackbone):
        super().__init__()
        self.clip = clip
        clip.tokenizer = clip.preprocess = None  # pairs come as token ids and preprocessed images
        self.feature_dim = self.embed_dim = 3 * clip.embed_dim
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: Pair, returnt: str = "out"):
        if not isinstance(x, Pair):
            raise UserError("backbone clip-fused takes images with texts: choose clip-visual for images alone")
        check_size(x.image, self.clip.resolution)
        text = self.clip.encode_embeddings(self.clip.token_embeddings(x.text), x.text.argmax(dim=1))
        features = fuse(self.clip.encode_image(x.image).float(), text.float())
        return answer(returnt, self.classifier, features, [features])

    def attention(self, x: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, n) to the patches and (B, L) to the words."""
        return both_attentions(self.clip, x)


@torch.no_grad()
def patch_attention(visual: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, n) attention of the class token to the patches of images (B, 3, R, R), mean over blocks and heads."""
    if not hasattr(visual, "class_embedding"):
        raise UserError("a ResNet image tower has no patches to mask: choose a ViT, e.g. --clip_backbone ViT-B/16")
    _, maps = run_tower(visual.transformer.resblocks, patch_tokens(visual, images), attention=True)
    return torch.stack(maps).mean((0, 2))[:, 0, 1:].float()


@torch.no_grad()
def word_attention(clip: CLIPBackbone, ids: torch.Tensor) -> torch.Tensor:
    """(B, L) attention of the end of text to the words of ids (B, L), mean over blocks and heads."""
    _, maps = clip.text_tokens(ids, return_attention=True)
    return torch.stack(maps).mean((0, 2))[torch.arange(len(ids), device=ids.device), ids.argmax(1)].float()


def both_attentions(clip: CLIPBackbone, x: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of both towers, the second is None if there is no text."""
    image, text = (x.image, x.text) if isinstance(x, Pair) else (x, None)
    return patch_attention(clip.clip.visual, image), None if text is None else word_attention(clip, text)


def check_size(image: torch.Tensor, resolution: int) -> None:
    if image.shape[-1] != resolution:
        raise UserError(
            f"CLIP's image tower takes images of {resolution} pixels, these have {image.shape[-1]}: "
            "choose a dataset of that size (seq-folder: --image_size) or another --clip_backbone"
        )


@register_backbone("clip-visual")
def clip_visual(num_classes: int, clip_backbone: Path = "ViT-B/32", base_path: str = "./data/") -> ClipVisual:
    """CLIP's image tower + linear classifier; --clip_backbone chooses the weights."""
    return ClipVisual(num_classes, load_clip(clip_backbone, base_path=base_path))


@register_backbone("clip-fused")
def clip_fused(num_classes: int, clip_backbone: Path = "ViT-B/32", base_path: str = "./data/") -> ClipFused:
    """Both towers of CLIP + linear classifier, for images with texts; --clip_backbone chooses the weights."""
    return ClipFused(num_classes, load_clip(clip_backbone, base_path=base_path))
