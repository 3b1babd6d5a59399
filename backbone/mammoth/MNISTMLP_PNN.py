"""A column of two hidden layers for progressive networks."""

import torch
from torch import nn

from backbone.mammoth.columns import Lateral
from backbone.mnistmlp import MNISTMLP
from utils.errors import UserError


class MNISTMLP_PNN(MNISTMLP):
    """`old_cols` are the columns of earlier tasks; they do not get gradients and are not part of this one's state."""

    def __init__(self, input_size: int, output_size: int, old_cols: list | None = None, hidden_size: int = 100):
        super().__init__(input_size, output_size, hidden_size)
        self.old_cols = tuple(old_cols or ())  # a tuple: not registered
        if self.old_cols:
            widths = [column.feature_dim for column in self.old_cols]
            self.laterals = nn.ModuleList(
                Lateral(widths, out, lambda a, b, _: nn.Linear(a, b), 2) for out in (hidden_size, output_size)
            )

    def hidden(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list]:
        """Both hidden layers (B, H), and the second ones of the old columns."""
        with torch.no_grad():
            old = [layers_of(column, x) for column in self.old_cols]
        first = self.fc1(x.flatten(1)).relu()
        second = self.fc2(first)
        if old:
            second = second + self.laterals[0]([layers[0] for layers in old])
        return first, second.relu(), [layers[1] for layers in old]

    def forward(self, x: torch.Tensor, returnt: str = "out") -> torch.Tensor:
        if returnt != "out":
            raise UserError(f"a progressive column supports only returnt 'out', not '{returnt}'")
        _, second, old = self.hidden(x)
        out = self.classifier(second)
        return out + self.laterals[1](old) if old else out


def layers_of(column: MNISTMLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden layers of a column, which may also be a plain network."""
    if isinstance(column, MNISTMLP_PNN):
        return column.hidden(x)[:2]
    first = column.fc1(x.flatten(1)).relu()
    return first, column.fc2(first).relu()
