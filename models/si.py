"""Synaptic intelligence: parameters that contributed to lowering the loss of past tasks are protected.

Zenke et al., ICML 2017, arXiv 1703.04200.

    omega += -g . (theta after the step - theta before)       g: gradient of the task's loss     -> `observe`
    Omega += omega / (|theta - theta*|^2 + xi), theta* <- theta, omega <- 0                        -> `end_task`
    loss  = task's loss + c * sum Omega (theta - theta*)^2

Choices: g is without the penalty and the step is the one the optimizer made, so that the path integral holds for any
optimizer. A parameter whose omega ends below 0 made the loss worse overall, as weight decay can do; --clamp_omega
1 counts it as 0, since a negative Omega would push it away from theta* without bound.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model si --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.flags import boolean, non_negative, positive
from utils.gradients import add_pull, flat, get_grads, trained


class SI(ContinualModel):
    NAME = "si"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = {"optim_wd": 0.1}  # a run in which some omega end below 0

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--c", type=non_negative, required=True, help="weight of the penalty")
        parser.add_argument("--xi", type=positive, required=True, help="damping added to each squared displacement")
        parser.add_argument("--clamp_omega", type=boolean, default=True, help="clamp importances at 0")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.anchor = self.importance = None  # theta* and Omega (P,), after the first task
        self.path = None  # omega (P,), within a task
        self.start = None  # theta (P,) where the task began

    def begin_task(self, dataset):
        self.start = flat(trained(self.net))
        self.path = torch.zeros_like(self.start)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        parameters = trained(self.net)
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        g, before = get_grads(parameters), flat(parameters)
        total = loss.detach()
        if self.anchor is not None:
            total = total + add_pull(parameters, self.anchor, self.importance, self.args.c)
        self.opt.step()
        self.path.addcmul_(g, before - flat(parameters))
        return total

    def end_task(self, dataset):
        now = flat(trained(self.net))
        omega = self.path.clamp(min=0) if self.args.clamp_omega else self.path
        gained = omega / ((now - self.start).square() + self.args.xi)
        self.importance = gained if self.importance is None else self.importance + gained
        self.anchor, self.path, self.start = now, None, None
