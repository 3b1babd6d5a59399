"""Residual networks for small images: a 3x3 stem, four stages of basic blocks, no max-pooling (arXiv 1512.03385)."""

import torch
import torch.nn.functional as F
from torch import nn

from backbone import MammothBackbone, ReturnTypes, answer, register_backbone
from utils.errors import UserError, shown
from utils.free_memory import require


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def before_relu(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.shortcut(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.before_relu(x))


class ResNet(MammothBackbone):
    """Stages of width num_filters x (1, 2, 4, 8); features are the mean of the last map."""

    def __init__(self, blocks: list[int], num_classes: int, num_filters: int = 64):
        super().__init__()
        if num_filters < 1:
            raise UserError(f"--num_filters {num_filters}: a network needs at least one filter")
        weights = 330 * sum(blocks) * num_filters**2  # measured, within 5 %
        require(3 * 4 * weights, f"--num_filters {shown(num_filters)}, with gradients and momentum,", "lower it")
        self.floats_per_pixel = 21 * num_filters * sum(blocks) // 8  # stored per input pixel for the gradient
        self.return_prerelu = False
        self.num_classes, self.nf = num_classes, num_filters  # under the names that method files use
        widths = [num_filters * k for k in (1, 2, 4, 8)]
        self.conv1 = nn.Conv2d(3, num_filters, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_filters)
        before = [num_filters, *widths]
        for stage in range(4):
            first = BasicBlock(before[stage], widths[stage], stride=1 if stage == 0 else 2)
            rest = [BasicBlock(widths[stage], widths[stage]) for _ in range(blocks[stage] - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
        self.feature_dim = self.embed_dim = widths[-1]
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def set_return_prerelu(self, enable: bool = True) -> None:
        """Whether maps of returnt "full" are taken before each stage's last ReLU; then they are their own `prerelu`."""
        self.return_prerelu = enable

    def forward(self, x: torch.Tensor, returnt: ReturnTypes = "out"):
        if x.shape[1] != 3:
            raise UserError(
                f"resnets take images of 3 channels, got {x.shape[1]}; --backbone mnistmlp takes gray digits"
            )
        full = returnt in {"full", "all"}  # otherwise maps are freed after their stage
        raw = self.bn1(self.conv1(x))
        x = F.relu(raw)
        maps = [before_relu(raw) if self.return_prerelu else x] if full else []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage[:-1]:
                x = block(x)
            raw = stage[-1].before_relu(x)
            x = F.relu(raw)
            if full:
                maps.append(before_relu(raw) if self.return_prerelu else x)
        return answer(returnt, self.classifier, x.mean(dim=(2, 3)), maps)


def before_relu(raw: torch.Tensor) -> torch.Tensor:
    """A map that has itself as `.prerelu`, as files expect; a view, since a tensor that holds itself is never freed."""
    view = raw.view_as(raw)
    view.prerelu = raw
    return view


@register_backbone("resnet18")
def resnet18(num_classes: int, num_filters: int = 64) -> ResNet:
    """ResNet-18 for images of 32 to 64 pixels"""
    return ResNet([2, 2, 2, 2], num_classes, num_filters)


@register_backbone("resnet34")
def resnet34(num_classes: int, num_filters: int = 64) -> ResNet:
    """ResNet-34 for images of 32 to 64 pixels"""
    return ResNet([3, 4, 6, 3], num_classes, num_filters)


@register_backbone("reduced-resnet18")
def reduced_resnet18(num_classes: int, num_filters: int = 20) -> ResNet:
    """ResNet-18 of a third of the width"""
    return ResNet([2, 2, 2, 2], num_classes, num_filters)
