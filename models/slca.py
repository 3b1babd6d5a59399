"""SLCA: the network is fine-tuned slowly, a head per task quickly; all heads are then aligned on Gaussian samples.

Zhang et al., ICCV 2023, arXiv 2303.05118.

    task       CE inside the task's own head; the network's rate is slow_lr times the heads'       -> `observe`
    after it   a Gaussian (mean, covariance) per class of the features of its images               -> `end_task`
    alignment  copies of all heads, from the second task on: CE over all classes on samples of N(f mu, S) with
               f = 0.9 + 0.1 (class's task) / (task so far), both counted from 1                   -> `samples`
               logits / (ca_with_logit_norm * mean over heads of the norm of the head's logits)    -> `leveled`

The next task goes on from the heads before alignment.

Choices: --ca_jitter times the mean variance is added to a covariance's diagonal (the released code adds 1e-4 whatever
the features' size). Features are of images without augmentation, the network in eval mode.

No table has a row of it; on the picture world:
    python main.py --model slca --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import natural, non_negative, positive, positive_int
from utils.generative import GENERATORS
from utils.passes import plain_batches
from utils.schedulers import warmup_cosine


class Slca(ContinualModel):
    NAME = "slca"
    COMPATIBILITY = ["class-il", "task-il"]
    TOY_ARGS = {"ca_epochs": 2, "ca_samples": 8, "ca_lr": 0.1, "lr": 0.1}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="sgd", lr=0.01, optim_mom=0.9, optim_wd=5e-4)
        add = parser.add_argument
        add("--slow_lr", type=non_negative, default=0.01, help="the network's learning rate, as a part of the heads'")
        add("--ca_epochs", type=natural, default=5, help="epochs of the alignment, each with new samples")
        add("--ca_samples", type=positive_int, default=256, help="samples per class in an epoch, and per step")
        add("--ca_lr", type=positive, default=0.01, help="learning rate of the alignment (SGD, momentum 0.9, cosine)")
        add(
            "--ca_with_logit_norm", type=non_negative, default=0.1, help="temperature of leveled logits, 0: as they are"
        )
        add("--ca_jitter", type=positive, default=1e-4, help="part of the mean variance added to a covariance")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not hasattr(self.net, "feature_dim"):
            raise UserError(
                "slca needs the size of the features, but this --backbone has no feature_dim: choose another"
            )
        self.heads = nn.ModuleList()
        self.aligned = None  # copies of the heads after the alignment, until the next task
        self.gaussians = GENERATORS["full_gauss"](jitter=args.ca_jitter)
        self.register_buffer("task_of", torch.zeros(self.num_classes, dtype=torch.long, device=self.device))

    def get_optimizer(self, params=None, lr=None):
        if params is None and getattr(self.args, "lr", None) and len(getattr(self, "heads", ())):
            slow = [p for p in self.net.parameters() if p.requires_grad]
            fast = {"params": list(self.heads[-1].parameters())}
            params = [{"params": slow, "lr": self.args.slow_lr * self.args.lr}, fast]
        return super().get_optimizer(params, lr)

    def begin_task(self, dataset):
        self.aligned = None
        self.heads.requires_grad_(False)
        self.heads.append(nn.Linear(self.net.feature_dim, self.n_classes_current_task).to(self.device))
        self.opt = self.get_optimizer()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits = self.heads[-1](self.net(inputs, returnt="features"))
        loss = cross_entropy(logits, labels - self.n_past_classes)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def forward(self, x):
        features = self.net(x, returnt="features")
        return torch.cat([head(features) for head in self.aligned or self.heads], dim=1)

    def end_task(self, dataset):
        if not self.work_done:
            self.task_of[self.n_past_classes : self.n_seen_classes] = self.current_task
            self.gaussians.fit(self.features_by_class(dataset))
            if self.current_task and self.args.ca_epochs:
                self.aligned = copy.deepcopy(self.heads).requires_grad_(True)
                self.opt = torch.optim.SGD(self.aligned.parameters(), lr=self.args.ca_lr, momentum=0.9)
        for epoch in self.work("alignment", self.args.ca_epochs if self.current_task else 0):
            for group in self.opt.param_groups:
                group["lr"] = self.args.ca_lr * warmup_cosine(epoch, 0, self.args.ca_epochs)
            x, y = self.samples()
            for rows in torch.randperm(len(y), device=y.device).split(self.args.ca_samples):
                self.opt.zero_grad()
                loss = cross_entropy(self.leveled([head(x[rows]) for head in self.aligned]), y[rows])
                loss.backward()
                self.opt.step()
                self.work_loss = loss.detach()

    @torch.no_grad()
    def features_by_class(self, dataset):
        """Features (n, D) of the task's classes."""
        training = self.net.training
        self.net.eval()
        found = [(self.net(x, returnt="features"), y) for x, y in plain_batches(self, dataset)]
        self.net.train(training)
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {int(c): features[labels == c] for c in labels.unique() if c >= 0}

    def samples(self):
        """Samples (C * n, D) of all classes so far and their labels, old means drawn in."""
        classes = torch.arange(self.n_seen_classes)
        drawn = self.gaussians.sample(classes, self.args.ca_samples)  # (C, n, D)
        mean = self.gaussians.rows["mean"][torch.tensor(self.gaussians.row_class).argsort()]
        nearer = 0.1 * ((self.task_of[: len(classes)] + 1) / (self.current_task + 1) - 1)  # f - 1
        drawn = drawn + (nearer[:, None] * mean)[:, None]
        return drawn.flatten(0, 1), classes.to(drawn.device).repeat_interleave(self.args.ca_samples)

    def leveled(self, logits):
        """All heads' logits (B, C) over their mean norm."""
        joined = torch.cat(logits, dim=1)
        if not self.args.ca_with_logit_norm:
            return joined
        norm = torch.stack([part.norm(dim=1) for part in logits]).mean(0)[:, None]
        return joined / (self.args.ca_with_logit_norm * (norm + 1e-7))
