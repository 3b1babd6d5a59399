"""STAR-Prompt, first stage: a learned vector per class before its name, retrained on samples of Gaussian mixtures.

Menabue et al., ECCV 2024, arXiv 2403.06870.

    prompt   [start][V_c][name.][end]
    task     cross-entropy of exp(logit_scale) cos(x, key) over the task's classes + lambda mean((V_new . V_old)^2)
                                                                                                -> `task_step`
    memory   per class a mixture of diagonal Gaussians on its raw image features                        -> `end_task`
    replay   cross-entropy over all classes seen on samples of the mixtures, V of older classes frozen  -> `replay_step`

Choices: images are not augmented, so that the frozen tower sees each of them once (the released code fits the mixtures
on two augmented passes); names not seen yet keep their hand-written key; float32 throughout. The second stage, a ViT
prompted by these keys, is not part of this file.

No table has a row of it; on the picture world:
    python main.py --model first-stage-starprompt --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.prompts import NamePrompts
from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import boolean, natural, non_negative, positive, positive_int
from utils.generative import GENERATORS


class FirstStageStarPrompt(VLMModel):
    NAME = "first-stage-starprompt"
    COMPATIBILITY = ["class-il", "task-il"]
    trains_in_loop = False
    TOY_ARGS = {"num_samples_gr": 8, "num_epochs_gr": 2}
    NOT_TRIED = {"gr_mog_n_iters": "EM on so few features converges at once; tests/test_starprompt.py"}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=0.002, n_epochs=20, batch_size=128)
        add = add_vlm_args(parser, names=False).add_argument
        add(
            "--lambda_ortho_first_stage",
            type=non_negative,
            default=30.0,
            help="weight of the term between new and old vectors",
        )
        add("--enable_gr", type=boolean, default=True, help="replay of synthetic features after each task")
        add("--learning_rate_gr", type=positive, default=0.05, help="learning rate of the replay (plain SGD)")
        add("--num_epochs_gr", type=natural, default=10, help="epochs of newly drawn samples")
        add("--num_samples_gr", type=positive_int, default=256, help="samples per class and epoch")
        add("--batch_size_gr", type=positive_int, default=128, help="samples per step")
        add("--gr_mog_n_components", type=positive_int, default=5, help="components per mixture")
        add("--gr_mog_n_iters", type=positive_int, default=500, help="maximum number of EM iterations")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        names = self.dataset.get_class_names()
        self.prompts = NamePrompts(self.net, names, 1).to(self.device)
        self.register_buffer("written", self.text_features(names), persistent=False)  # (C, D)
        self.V = nn.Parameter(0.02 * torch.randn(self.num_classes, 1, self.net.text_width, device=self.device))
        self.mixtures = GENERATORS["mog"](n_components=args.gr_mog_n_components, n_iters=args.gr_mog_n_iters)
        self.keys = None  # unit keys of the seen classes (S, D); None when a vector has changed since then
        self.opt = self.get_optimizer()

    def get_parameters(self):
        return [self.V] if hasattr(self, "V") else []

    def encode_keys(self, rows):
        return normalize(self.prompts.encode(self.net, self.V[rows], rows).float(), dim=1)

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = features[labels >= 0], labels[labels >= 0]
        for _ in self.work("prompts", 1 if self.args.debug_mode else self.args.n_epochs):
            order = torch.randperm(len(labels)).to(labels.device)
            self.epoch(self.task_step, features[order], labels[order], self.args.batch_size)
        if self.args.enable_gr:
            for _ in self.work("mixtures", 1):
                self.mixtures.fit({int(c): features[labels == c] for c in labels.unique()})
                self.opt = torch.optim.SGD([self.V], lr=self.args.learning_rate_gr)
            for _ in self.work("replay", 1 if self.args.debug_mode else self.args.num_epochs_gr):
                samples = self.mixtures.shuffled(self.n_seen_classes, self.args.num_samples_gr)
                self.epoch(self.replay_step, *samples, self.args.batch_size_gr)
        self.keys = None

    def epoch(self, step, features, labels, size):
        self.keys = self.seen_keys()  # the old rows do not change during a task
        batches = zip(normalize(features, dim=1).split(size), labels.split(size), strict=True)
        self.work_loss = torch.stack([step(x, y) for x, y in batches]).mean()
        self.keys = None

    def task_step(self, x, y):
        first = self.n_past_classes
        old, new = self.V[:first].detach().flatten(1), self.V[first : self.n_seen_classes].flatten(1)
        loss = cross_entropy(self.logits(x, self.encode_keys(torch.arange(first, self.n_seen_classes))), y - first)
        if len(old):
            loss = loss + self.args.lambda_ortho_first_stage * (new @ old.T).square().mean()
        return self.step(loss)

    def replay_step(self, x, y):
        new = self.encode_keys(torch.arange(self.n_past_classes, self.n_seen_classes))
        return self.step(cross_entropy(self.logits(x, torch.cat([self.keys[: self.n_past_classes], new])), y))

    def step(self, loss):
        """Step on the vectors of the task; weight decay would also move the others."""
        before = self.V.detach().clone()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        with torch.no_grad():
            self.V[: self.n_past_classes] = before[: self.n_past_classes]
            self.V[self.n_seen_classes :] = before[self.n_seen_classes :]
        return loss.detach()

    @torch.no_grad()
    def seen_keys(self):
        return self.encode_keys(torch.arange(self.n_seen_classes)) if self.keys is None else self.keys

    def forward(self, x):
        self.keys = self.seen_keys()
        return self.logits(self.encode(x), self.keys)

    def future_forward(self, x):
        unseen = self.written[self.n_seen_classes :]
        features = self.encode(x)
        return torch.cat([self.forward(features), self.logits(features, unseen)], dim=1)
