"""A small transformer with prompt tokens of its own, as a subclass of the one files import"""

import torch
import torch.nn as nn

from backbone import register_backbone
from backbone.vit import Block, VisionTransformer, create_vision_transformer


class PromptedTransformer(VisionTransformer):
    def __init__(self, prompt_length=2, **kwargs):
        super().__init__(**kwargs)
        self.prompt = nn.Parameter(torch.randn(1, prompt_length, self.embed_dim) * 0.02)

    def forward_features(self, x, AB={}, return_all=False):
        x = self._pos_embed(self.patch_embed(x))
        x = torch.cat([x, self.prompt.expand(x.shape[0], -1, -1)], dim=1)
        states = []
        for blk in self.blocks:
            x = blk(x)
            states.append(x)
        return (self.norm(x), states) if return_all else self.norm(x)


@register_backbone('drop-vit')
def drop_vit(num_classes, prompt_length: int = 2):
    return create_vision_transformer('vit_tiny_patch16_224', base_class=PromptedTransformer, pretrained=False, img_size=16,
                                     patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=num_classes,
                                     prompt_length=prompt_length, block_fn=Block)
