"""CoOp made sequential: learned context vectors before the class names, trained on each task's features in turn.

Zhou et al., IJCV 2022, arXiv 2109.01134. The image tower is frozen and images are not augmented, so training runs on
cached features. `--joint 1` gives joint prompt tuning.

    prompt   [start][V_1 ... V_m][name.][end], V shared by all classes or one set for each (--csc 1)
    loss     cross-entropy of exp(logit_scale) cos(x, key) over the task's classes

Choices: --coop_loss seen puts every class seen so far into the softmax instead of the task's; class-specific vectors of
other classes are not changed; names not seen yet get the shared context, or with --csc 1 their hand-written key.

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model coop --eval_future 1 --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.prompts import NamePrompts
from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import boolean, positive_int
from utils.schedulers import get_scheduler


class CoOp(VLMModel):
    NAME = "coop"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    TOY_ARGS = {"n_ctx": 2, "coop_loss": "seen", "csc": True}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=0.002, optim_mom=0.9, n_epochs=30, batch_size=32, lr_scheduler="cosine")
        parser.add_argument("--n_ctx", type=positive_int, default=16, help="context vectors per prompt")
        parser.add_argument("--csc", type=boolean, default=False, help="class-specific context vectors")
        parser.add_argument(
            "--coop_loss", choices=["current", "seen"], default="current", help="classes in the training softmax"
        )
        return add_vlm_args(parser, names=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        names = self.dataset.get_class_names()
        self.prompts = NamePrompts(self.net, names, args.n_ctx).to(self.device)
        self.written = self.text_features(names)  # unit hand-written keys (C, D)
        rows = self.num_classes if args.csc else 1
        self.ctx = nn.Parameter(0.02 * torch.randn(rows, args.n_ctx, self.net.text_width, device=self.device))
        self.opt, self.schedule = self.get_optimizer(), None
        self.keys = None  # unit keys of all names; None when the context has changed since

    def get_parameters(self):
        return [self.ctx] if hasattr(self, "ctx") else []

    def encode_keys(self, rows):
        context = self.ctx[rows] if self.args.csc else self.ctx.expand(len(rows), -1, -1)
        return normalize(self.prompts.encode(self.net, context, rows).float(), dim=1)

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = normalize(features[labels >= 0], dim=1), labels[labels >= 0]
        if not self.work_done:
            self.schedule = get_scheduler(self, self.args)
        for _ in self.work("prompts", 1 if self.args.debug_mode else self.args.n_epochs):
            order = torch.randperm(len(labels)).to(labels.device)
            losses = [self.step(features[rows], labels[rows]) for rows in order.split(self.args.batch_size)]
            if self.schedule is not None:
                self.schedule.step()
            self.work_loss = torch.stack(losses).mean()
        self.keys = self.schedule = None

    def step(self, x, y):
        """One step on unit features x (B, D)."""
        start = 0 if self.args.coop_loss == "seen" else self.n_past_classes
        rows = torch.arange(start, self.n_seen_classes)
        before = self.ctx.detach().clone()
        self.opt.zero_grad()
        loss = cross_entropy(self.logits(x, self.encode_keys(rows)), y - start)
        loss.backward()
        self.opt.step()
        if self.args.csc:  # weight decay would move the vectors of other classes
            with torch.no_grad():
                self.ctx[:start], self.ctx[self.n_seen_classes :] = before[:start], before[self.n_seen_classes :]
        self.keys = None
        return loss.detach()

    @torch.no_grad()
    def probe_keys(self, names, templates):
        """Names outside the stream get the learned context too, once there is one for all classes."""
        if self.args.csc or not self.current_task:
            return super().probe_keys(names, templates)
        prompts = NamePrompts(self.net, names, self.args.n_ctx).to(self.device)
        context = self.ctx.expand(len(names), -1, -1)
        return normalize(prompts.encode(self.net, context, torch.arange(len(names))).float(), dim=1)

    @torch.no_grad()
    def all_keys(self):
        if self.keys is None:
            self.keys = self.encode_keys(torch.arange(self.num_classes))
            if self.args.csc:
                self.keys[self.n_seen_classes :] = self.written[self.n_seen_classes :]
        return self.keys

    def forward(self, x):
        return self.logits(self.encode(x), self.all_keys()[: self.n_seen_classes])

    def future_forward(self, x):
        return self.logits(self.encode(x), self.all_keys())
