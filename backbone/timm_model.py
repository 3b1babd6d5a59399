"""Any model of the timm library, as --backbone timm:<name>"""

import difflib

import torch
from torch import nn

from backbone import MammothBackbone, ReturnTypes, answer, register_backbone
from utils.errors import UserError


class TimmModel(MammothBackbone):
    """A timm network without its head, and our own `classifier`; the maps are timm's intermediates."""

    def __init__(self, net: nn.Module, name: str, num_classes: int):
        super().__init__()
        self.net, self.name = net, name
        self.feature_dim = self.embed_dim = getattr(net, "head_hidden_size", None) or net.num_features
        config = net.pretrained_cfg
        self.fixed_size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: torch.Tensor, returnt: ReturnTypes = "out"):
        self._check(x)
        if returnt not in {"full", "all"}:
            return answer(returnt, self.classifier, self.net(x), None)
        if not hasattr(self.net, "forward_intermediates"):
            raise UserError(
                f"timm:{self.name} does not return the feature maps of "
                "its stages; choose another --backbone for this method"
            )
        last, maps = self.net.forward_intermediates(x)
        return answer(returnt, self.classifier, self.net.forward_head(last, pre_logits=True), maps)

    def _check(self, x: torch.Tensor) -> None:
        size = tuple(x.shape[2:])
        if x.shape[1] != 3 or (self.fixed_size and size != self.fixed_size):
            wanted = "x".join(map(str, (3, *self.fixed_size))) if self.fixed_size else "3-channel"
            raise UserError(
                f"timm:{self.name} takes {wanted} images, got {'x'.join(map(str, x.shape[1:]))}; "
                "choose a dataset or a --backbone of matching size"
            )


@register_backbone("timm")
def timm_model(num_classes: int, _variant: str = "", pretrained: bool = True) -> TimmModel:
    """Any timm model, written timm:<name>, for example timm:vit_small_patch16_224"""
    import timm

    if not _variant:
        raise UserError("--backbone timm needs a name: for example timm:vit_small_patch16_224")
    if not timm.is_model(_variant):
        known = timm.list_models()
        close = difflib.get_close_matches(_variant, known, n=3, cutoff=0.4)
        raise UserError(
            f"timm does not have a model '{_variant}'. Closest: {', '.join(close) or 'none'}; it has {len(known)}"
        )
    try:
        config = timm.get_pretrained_cfg(_variant)
    except RuntimeError as error:  # an unknown tag after the dot
        raise UserError(f"timm cannot build '{_variant}': {error}") from None
    if not pretrained:
        return TimmModel(timm.create_model(_variant, pretrained=False, num_classes=0), _variant, num_classes)
    place = config and (config.hf_hub_id or config.url)
    if not place:
        raise UserError(f"timm publishes no weights for '{_variant}': add --pretrained 0 to start from random ones")
    try:
        net = timm.create_model(_variant, pretrained=True, num_classes=0)
    except Exception as error:  # the hub client raises classes of several HTTP libraries
        raise UserError(
            f"the weights of timm:{_variant} ({place}) could not be loaded ({type(error).__name__}): "
            "download them once with a network connection, or add --pretrained 0 to start from random ones"
        ) from error
    return TimmModel(net, _variant, num_classes)
