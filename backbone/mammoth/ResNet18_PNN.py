"""A ResNet-18 column for progressive networks."""

import torch
import torch.nn.functional as F
from torch import nn

from backbone.mammoth.columns import Lateral
from backbone.resnet import ResNet
from utils.errors import UserError


def _conv(stride: int):
    return lambda a, b, last: nn.Conv2d(a, b, 1, stride if last else 1, bias=False)


class ResNetPNN(ResNet):
    """A lateral connection joins every stage but the first before its last ReLU, and the classifier.

    `old_cols` are the columns of earlier tasks; they do not get gradients and are not part of this one's state.
    """

    def __init__(self, blocks: list[int], num_classes: int, num_filters: int = 64, old_cols: list | None = None):
        super().__init__(blocks, num_classes, num_filters)
        self.old_cols = tuple(old_cols or ())  # a tuple: not registered
        if self.old_cols:
            scale = [column.feature_dim // 8 for column in self.old_cols]
            self.laterals = nn.ModuleList(
                Lateral([w * 2**k for w in scale], num_filters * 2 ** (k + 1), _conv(2), 4) for k in range(3)
            )
            widths = [column.feature_dim for column in self.old_cols]
            self.laterals.append(Lateral(widths, num_classes, lambda a, b, _: nn.Linear(a, b), 2))

    def stages(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Maps of the four stages, and those of the old columns."""
        with torch.no_grad():
            old = [c.stages(x)[0] if isinstance(c, ResNetPNN) else c(x, returnt="full")[1][1:] for c in self.old_cols]
        x, maps = F.relu(self.bn1(self.conv1(x))), []
        for k, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            raw = stage[-1].before_relu(stage[:-1](x))
            if old and k:
                raw = raw + self.laterals[k - 1]([column[k - 1] for column in old])
            maps.append(x := F.relu(raw))
        return maps, old

    def forward(self, x: torch.Tensor, returnt: str = "out") -> torch.Tensor:
        if returnt != "out":
            raise UserError(f"a progressive column supports only returnt 'out', not '{returnt}'")
        maps, old = self.stages(x)
        out = self.classifier(maps[-1].mean((2, 3)))
        return out + self.laterals[3]([column[-1].mean((2, 3)) for column in old]) if old else out


def resnet18_pnn(nclasses: int, nf: int = 64, old_cols: list | None = None, x_shape=None) -> ResNetPNN:
    """A column; `x_shape` is accepted but not needed: no layer depends on the image size."""
    return ResNetPNN([2, 2, 2, 2], nclasses, nf, old_cols)
