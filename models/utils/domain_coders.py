"""An autoencoder per task on frozen features: the one with the least error tells which task an image is of."""

import torch
from torch import Tensor, nn

from utils.randomness import generator

ROWS = 64  # features per step


class DomainCoders(nn.Module):
    """x (B, D) -> code of a few numbers -> x, a network for each task."""

    def __init__(self, tasks: int, dim: int, code: int):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, code), nn.ReLU(), nn.Linear(code, dim)) for _ in range(tasks)
        )

    def fit(self, task: int, rows: Tensor, steps: int, lr: float, seed: int) -> None:
        """Adam on the squared error of random batches of rows (N, D)."""
        net, draw = self.nets[task], generator(seed, "autoencoder", task)
        opt = torch.optim.Adam(net.parameters(), lr=lr)
        for _ in range(steps):
            batch = rows[torch.randint(len(rows), (ROWS,), generator=draw).to(rows.device)]
            opt.zero_grad()
            (net(batch) - batch).square().sum(1).mean().backward()
            opt.step()
        net.requires_grad_(False)

    @torch.no_grad()
    def choose(self, rows: Tensor, tasks: int, unknown_above: float) -> Tensor:
        """(B,) of the first `tasks` the one with the least squared error on rows (B, D); -1 where that is too large."""
        errors = torch.stack([(net(rows) - rows).square().sum(1) for net in self.nets[:tasks]], dim=1)
        least, task = errors.min(1)
        return torch.where(least > unknown_above, -1, task)
