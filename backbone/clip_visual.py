"""CLIP's image tower with a linear classifier, so that gradient baselines start from the weights CLIP methods use."""

import torch
from torch import nn

from backbone import MammothBackbone, answer, register_backbone
from backbone.clip import load_clip
from utils.errors import UserError


class ClipVisual(MammothBackbone):
    """`features` are CLIP's raw image features; images come as CLIP's preprocessing gives them."""

    def __init__(self, num_classes: int, clip):
        super().__init__()
        self.visual, self.resolution = clip.clip.visual, clip.resolution
        self.feature_dim = self.embed_dim = clip.embed_dim
        self.classifier = nn.Linear(clip.embed_dim, num_classes)

    def forward(self, x: torch.Tensor, returnt: str = "out"):
        if x.shape[-1] != self.resolution:
            raise UserError(f"CLIP's image tower takes {self.resolution} pixels, the images have {x.shape[-1]}: "
                            "choose a dataset of that size or another --clip_backbone")
        features = self.visual(x.to(self.visual.conv1.weight.dtype)).float()
        return answer(returnt, self.classifier, features, [features])


@register_backbone("clip-visual")
def clip_visual(num_classes: int, clip_backbone: str = "ViT-B/32", base_path: str = "./data/") -> ClipVisual:
    """CLIP's image tower + linear classifier; --clip_backbone chooses the weights."""
    return ClipVisual(num_classes, load_clip(clip_backbone, base_path=base_path))
