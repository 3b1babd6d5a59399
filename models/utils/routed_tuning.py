"""Shared by CLIPs with parts per task inside: which part an image passes through is decided from its frozen feature."""

import torch
from torch.nn.functional import normalize

from models.utils.clip_tuning import ClipTuning
from models.utils.vlm_model import EVAL_ROWS


class RoutedTuning(ClipTuning):
    """A row of `encode` is [feature under its route ; route], and there are keys of all names for each route.

    A method defines `route_images` and `route_texts`; `routes()` is how many there are, 0 for a CLIP without any.
    """

    def routes(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} does not define routes()")

    def route_images(self, pixels) -> torch.Tensor:
        """Choose for each image (B, 3, R, R) what it passes through; returns its route (B,), -1 for the last."""
        raise NotImplementedError(f"{type(self).__name__} does not define route_images()")

    def route_texts(self, route: int) -> None:
        """Choose what all texts pass through."""
        raise NotImplementedError(f"{type(self).__name__} does not define route_texts()")

    def switch_off(self) -> None:
        """Let images pass through the frozen CLIP alone."""
        raise NotImplementedError(f"{type(self).__name__} does not define switch_off()")

    def get_parameters(self):
        return [p for p in self.net.parameters() if p.requires_grad]

    def clip_pixels(self, x):
        return getattr(x, "image", x).to(self.device)

    @torch.no_grad()
    def plain_rows(self, pixels):
        """Unit features (B, D) of the frozen CLIP."""
        self.switch_off()
        return self.image_rows(self.net, pixels)

    def plain_task(self, dataset):
        """Unit frozen features (N, D) of the task's training images, prepared as at test."""
        split, training = dataset.train_loader.dataset, self.net.training
        transform = split.transform
        self.use_clip_preprocessing(split)
        self.net.eval()
        loader = dataset.train_loader.with_batch_size(EVAL_ROWS)
        rows = torch.cat([self.plain_rows(self.clip_pixels(batch[0])) for batch in loader.epoch(0)])
        self.net.train(training)
        split.transform = transform
        return rows

    def encode(self, x):
        if not self.routes() or getattr(x, "image", x).dim() == 2:
            return super().encode(x)
        pixels = self.clip_pixels(x)
        route = self.route_images(pixels)
        return torch.cat([self.image_rows(self.net, pixels), route[:, None]], dim=1)

    def all_keys(self):
        if not self.routes():
            return super().all_keys()
        if self.keys is None:
            sets = []
            for route in range(self.routes()):
                self.route_texts(route)
                self.keys = None
                sets.append(super().all_keys())
            self.keys = torch.stack(sets)  # (routes, C, D)
        return self.keys

    def logits(self, features, keys):
        if not self.routes():
            return super().logits(features, keys)
        rows, route = normalize(features[:, :-1], dim=1), features[:, -1].long()
        return torch.einsum("bd,bcd->bc", self.scale * rows, keys[route])

    def forward(self, x):
        return self.future_forward(x)[:, : self.n_seen_classes]
