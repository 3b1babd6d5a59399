"""Vision transformers for method files to subclass: timm's, with `returnt`, low-rank terms and Mammoth's part names.

Weights are timm's, downloaded by timm; `--pretrained 0` starts from random ones.
Choices: pretrain_type in21k_old stands for the weights of the paper (timm's orig_in21k) [the name is all that is
documented]; a subclass may have its own parameters besides the loaded weights.
"""

import re
from typing import Literal

import torch
from timm.models import vision_transformer as timm_vit
from timm.models.vision_transformer import get_init_weights_vit  # noqa: F401  (part of this module's interface)

from backbone import MammothBackbone, ReturnTypes, answer, register_backbone
from backbone.mammoth.additive import LoRAAttention, LoRAMlp
from utils.errors import UserError

Mlp = LoRAMlp
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}  # width, blocks, heads
TAGS = {"in21k-ft-in1k": "augreg_in21k_ft_in1k", "in21k": "augreg_in21k", "in21k_old": "orig_in21k"}


class Block(timm_vit.Block):
    """Attention and MLP with low-rank terms."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"attn_layer": LoRAAttention, "mlp_layer": LoRAMlp} | kwargs)

    def forward(self, x: torch.Tensor, AB: dict | None = None) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), AB)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), AB)))


class VisionTransformer(timm_vit.VisionTransformer, MammothBackbone):
    """The last layer is `head`, also under the name `classifier`; "full" gives the tokens (B, N, D) after each block.

    AB: low-rank terms by number of the block, {3: {"qkv": {"B": .., "A": ..}}}.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"block_fn": Block, "attn_layer": LoRAAttention, "mlp_layer": LoRAMlp} | kwargs)
        self.feature_dim = self.num_features

    @property
    def classifier(self):
        return self.head

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__("head" if name == "classifier" else name, value)

    def forward_features(self, x: torch.Tensor, AB: dict | None = None, return_all: bool = False):
        """Tokens (B, N, D) after the last norm; with `return_all` also those after each block."""
        x, states = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x)))), []
        for number, block in enumerate(self.blocks):
            x = block(x, AB[number]) if AB and number in AB else block(x)
            if return_all:
                states.append(x)
        return (self.norm(x), states) if return_all else self.norm(x)

    def forward(self, x: torch.Tensor, AB: dict | None = None, returnt: ReturnTypes = "out"):
        if isinstance(AB, str):  # forward(x, "features"), as of the other networks
            AB, returnt = None, AB
        states = None
        if returnt in {"full", "all"}:
            tokens, states = self.forward_features(x, AB, return_all=True)
        else:
            tokens = self.forward_features(x, AB) if AB else self.forward_features(x)  # subclasses may not accept AB
        return answer(returnt, self.head, self.forward_head(tokens, pre_logits=True), states)

    def _kept(self, discard_classifier: bool) -> list[torch.nn.Parameter]:
        return [p for name, p in self.named_parameters() if not (discard_classifier and name.startswith("head."))]

    def get_params(self, discard_classifier: bool = False) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self._kept(discard_classifier))

    def get_grads(self, discard_classifier: bool = False) -> torch.Tensor:
        kept = self._kept(discard_classifier)
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in kept])


def create_vision_transformer(variant: str, base_class: type = VisionTransformer, pretrained: bool = False, **kwargs):
    """`base_class` in the sizes of a name such as vit_base_patch16_224, which `kwargs` override."""
    found = re.fullmatch(r"vit_(tiny|small|base|large)_patch(\d+)_(\d+)(\.\w+)?", variant)
    if not found:
        raise UserError(f"'{variant}' is not a plain vision transformer: names look like vit_base_patch16_224[.tag]")
    width, depth, heads = SIZES[found[1]]
    sizes = {
        "patch_size": int(found[2]),
        "img_size": int(found[3]),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
    }
    net = base_class(**sizes | kwargs)
    if pretrained:
        load_weights(net, variant)
    return net


def load_weights(net: torch.nn.Module, variant: str) -> None:
    """timm's weights of that name, except the head's."""
    from backbone.timm_model import timm_model

    weights = timm_model(1, variant, True).net.state_dict()
    misfits = [n for n, w in weights.items() if n not in net.state_dict() or net.state_dict()[n].shape != w.shape]
    if misfits:
        raise UserError(
            f"the weights of {variant} do not fit this network: {', '.join(misfits[:3])}; change the "
            "sizes, or pass pretrained=False"
        )
    net.load_state_dict(weights, strict=False)


def vit_base_patch16_224_prompt_prototype(
    pretrained: bool = False, pretrain_type: str = "in21k-ft-in1k", num_classes: int = 1000, **kwargs
) -> torch.nn.Module:
    """ViT-B/16 on 224 pixels."""
    if pretrain_type not in TAGS:
        raise UserError(f"pretrain_type '{pretrain_type}' is not one of {', '.join(TAGS)}")
    variant = f"vit_base_patch16_224.{TAGS[pretrain_type]}"
    return create_vision_transformer(variant, pretrained=pretrained, num_classes=num_classes, **kwargs)


@register_backbone("vit")
def vit(
    num_classes: int,
    pretrained: bool = True,
    pretrain_type: Literal["in21k-ft-in1k", "in21k", "in21k_old"] = "in21k-ft-in1k",
) -> VisionTransformer:
    """ViT-B/16 for images of 224 pixels, with timm's weights"""
    return vit_base_patch16_224_prompt_prototype(pretrained, pretrain_type, num_classes)
