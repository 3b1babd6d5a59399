"""Two hidden layers on flattened digits."""

import torch
from torch import nn

from backbone import MammothBackbone, ReturnTypes, answer, num_flat_features, register_backbone, xavier
from utils.errors import UserError, shown
from utils.free_memory import require


class MNISTMLP(MammothBackbone):
    """input - hidden - hidden - classes, ReLU between; the maps of returnt "full" are the features."""

    def __init__(self, input_size: int, num_classes: int, hidden_size: int = 100):
        super().__init__()
        if hidden_size < 1:
            raise UserError(f"--mlp_hidden_size {hidden_size}: a layer needs at least one unit")
        weights = hidden_size * (input_size + hidden_size + num_classes)
        require(3 * 4 * weights, f"--mlp_hidden_size {shown(hidden_size)}, with gradients and momentum,", "lower it")
        self.input_size, self.output_size, self.feature_dim = input_size, num_classes, hidden_size
        self.fc1, self.fc2 = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_classes)
        self.apply(xavier)

    def forward(self, x: torch.Tensor, returnt: ReturnTypes = "out"):
        if num_flat_features(x) != self.input_size:
            raise UserError(
                f"mnistmlp takes images of {self.input_size} values, got {tuple(x.shape[1:])}; "
                "choose another --backbone (--list backbones)"
            )
        features = self.fc2(self.fc1(x.flatten(1)).relu()).relu()
        return answer(returnt, self.classifier, features, features)


@register_backbone("mnistmlp")
def mnistmlp(num_classes: int, mlp_hidden_size: int = 100) -> MNISTMLP:
    """Two hidden layers for 28 x 28 digits"""
    return MNISTMLP(28 * 28, num_classes, mlp_hidden_size)
