"""PNN: a new network for each task, whose classifier also reads the frozen networks of earlier tasks.

Rusu et al., 2016, arXiv 1606.04671. With f_j the features of column j, and those of columns before t frozen,

    logits of task t   W_t f_t + U_t relu(V_t [a_tj f_j for j < t]), a_tj learned scales            -> `column`
    loss               cross-entropy among the task's classes                                        -> `observe`

The task is known at test: scores are among the classes of its own column.

Choices: columns are any network, so the lateral connections enter the classifier alone, where the paper gives them to
every layer; `backbone.ResNet18_PNN`, for files written for Mammoth, has them at each stage. A new column is --backbone
as it would start a run: new random weights, or the pre-trained ones. The scales start small at random, as in
`backbone/mammoth/columns.py`.

No table has a row of it; on the picture world:
    python main.py --model pnn --dataset seq-tiny --backbone clip-visual --lr 0.03 --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from backbone import get_backbone
from models.utils.continual_model import ContinualModel
from utils.errors import UserError


class Pnn(ContinualModel):
    NAME = "pnn"
    COMPATIBILITY = ["task-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not hasattr(self.net, "feature_dim"):
            raise UserError(
                "pnn needs the size of the features, but this --backbone has no feature_dim: choose another"
            )
        self.columns = nn.ModuleList()  # networks of earlier tasks; `net` is the newest
        self.heads, self.reduce, self.expand = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()  # W, V, U
        self.scales = nn.ParameterList()  # (t,) per task from the second on

    def begin_task(self, dataset):
        dim, classes = self.net.feature_dim, self.n_classes_current_task
        if self.current_task:
            self.requires_grad_(False)
            self.columns.append(self.net)
            self.net = get_backbone(self.args, self.num_classes).to(self.device)
            self.reduce.append(nn.Linear(len(self.columns) * dim, dim).to(self.device))
            self.expand.append(nn.Linear(dim, classes).to(self.device))
            self.scales.append(nn.Parameter(0.1 * torch.rand(len(self.columns)).to(self.device)))
        self.heads.append(nn.Linear(dim, classes).to(self.device))
        self.train(self.training)
        self.opt = self.get_optimizer()

    def train(self, mode=True):
        """The frozen columns stay in eval mode."""
        super().train(mode)
        if hasattr(self, "columns"):
            self.columns.eval()
        return self

    def get_parameters(self):
        return self.parameters()

    def features(self, x):
        """Features (B, D) of every column; the newest one comes last."""
        with torch.no_grad():
            old = [column(x, returnt="features") for column in self.columns]
        return [*old, self.net(x, returnt="features")]

    def column(self, task, features):
        """Logits (B, classes of the task) from the features of its column and those before it."""
        out = self.heads[task](features[task])
        if not task:
            return out
        scaled = torch.cat([a * f for a, f in zip(self.scales[task - 1], features[:task], strict=True)], dim=1)
        return out + self.expand[task - 1](self.reduce[task - 1](scaled).relu())

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits = self.column(self.current_task, self.features(inputs))
        loss = cross_entropy(logits, labels - self.n_past_classes)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def forward(self, x, task=None):
        """Every column answers for its own classes, so that the task (B,) is only needed to choose among them."""
        features = self.features(x)
        found = torch.cat([self.column(task, features) for task in range(len(self.heads))], dim=1)
        return nn.functional.pad(found, (0, self.num_classes - found.shape[1]), value=-1e4)
