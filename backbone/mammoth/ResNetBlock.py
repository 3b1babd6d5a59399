"""backbone.resnet under another name."""

from backbone.resnet import BasicBlock, ResNet, reduced_resnet18, resnet18, resnet34  # noqa: F401
