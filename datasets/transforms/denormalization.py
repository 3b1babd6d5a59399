"""The inverse of torchvision's Normalize."""

import torch


class DeNormalize:
    """x * std + mean per channel, of one image (C, H, W) or a batch; has the `mean` and `std` it was given."""

    def __init__(self, mean, std):
        self.mean = torch.as_tensor(mean, dtype=torch.float32)
        self.std = torch.as_tensor(std, dtype=torch.float32)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean, std = (v.to(tensor).view(-1, 1, 1) for v in (self.mean, self.std))
        return tensor * std + mean
