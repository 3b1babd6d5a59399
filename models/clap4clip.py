"""CLAP4CLIP: names become distributions, a normal one per class from a head per task, around names that see the image.

Jha et al., NeurIPS 2024, arXiv 2403.19137. f is the unit image feature, t the mean of a name's sentences.

    guided   v = a decoder layer of attention from all names t to the image                        -> `guided`
    heads    z_c ~ N(mu(t_c), sigma(t_c)), a linear map each per task; sigma = 0.999 softplus + 0.001 -> `normals`
    logits   mean over --samples draws of exp(logit_scale) f . (t_c + v_c + z_c)                    -> `scores`
    loss     cross-entropy over the seen classes + kl_weight KL(N(mu, sigma) || N(0, 1))
             + lasp_weight cross-entropy of t_c + z_c among all t                                   -> `loss_of`
    memory   features of --exemplars images per class, herded, trained with those of the task; then
             --balanced_epochs on the memory alone

Choices: each image attends on its own (released: over the whole test batch), so its attention is on one token and adds
the same to all names before they are mixed. At test the draws are replaced by their mean. Old heads are frozen. Heads
read t; mu starts at T^T T / D of the task's t, sigma at V^T V / D of their variances over the sentences with an offset
that makes it --sigma_start: softplus(0) would drown unit features. KL is summed over the numbers of a feature, with
the standard normal as prior. The layer has one head. The distillation, an option of the released code, is left out.
Exemplars are features.

No table has a row of it; on the picture world:
    python main.py --model clap4clip --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize, softplus

from models.utils.feature_training import FeatureTraining
from models.utils.vlm_model import add_vlm_args
from utils.flags import fraction, natural, non_negative, positive, positive_int
from utils.memory.exemplars import herd


class Clap4Clip(FeatureTraining):
    NAME = "clap4clip"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"lr": 0.01, "exemplars": 3, "samples": 2, "kl_weight": 0.1, "sigma_start": 0.2}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adam", lr=1e-3, n_epochs=5, batch_size=32)
        add = add_vlm_args(parser).add_argument
        add("--samples", type=positive_int, default=20, help="draws of each class per step")
        add("--kl_weight", type=non_negative, default=0.001, help="weight of the distance to the prior")
        add("--lasp_weight", type=non_negative, default=15.0, help="weight of the alignment with the names")
        add("--sigma_start", type=positive, default=0.05, help="first standard deviation")
        add("--guide_dropout", type=fraction, default=0.1, help="dropout in that layer")
        add("--exemplars", type=natural, default=20, help="features kept per class")
        add("--balanced_epochs", type=natural, default=2, help="epochs on the memory after those of the task")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        dim, names = self.feature_dim, self.dataset.get_class_names()
        templates = self.class_templates(every=True)
        self.texts = self.text_features(names, templates)  # (C, D)
        self.spread = self.variances(names, templates)  # (C, D)
        self.guide = nn.TransformerDecoderLayer(
            dim, 1, dim, args.guide_dropout, "gelu", batch_first=True, norm_first=True
        ).to(self.device)
        self.mu, self.sigma = nn.ModuleList(), nn.ModuleList()  # a head per task
        self.memory = torch.zeros(0, dim, device=self.device)  # unit features
        self.memory_labels = torch.zeros(0, dtype=torch.long, device=self.device)

    def variances(self, names, templates):
        """Over the sentences of each name, of unit features; 0 where there is one sentence."""
        longest = max(len(own) for own in templates)
        each = [[own[k % len(own)] for own in templates] for k in range(longest)]
        parts = [self.text_features(names, [[sentence] for sentence in column]) for column in each]
        return torch.stack(parts).var(0, correction=0)

    def get_parameters(self):
        if not len(getattr(self, "mu", ())):
            return []
        return [p for part in (self.guide, self.mu[-1], self.sigma[-1]) for p in part.parameters()]

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        features = normalize(features, dim=1)
        if not self.work_done:
            self.new_heads()
        x, y = torch.cat([features, self.memory]), torch.cat([labels, self.memory_labels])
        self.guide.train()
        self.train_on("distributions", x, y, self.loss_of)
        if "memory" not in self.work_done:
            for c in labels.unique().tolist() if self.args.exemplars else ():
                own = features[labels == c]
                own = own[herd(own, self.args.exemplars)]
                self.memory = torch.cat([self.memory, own])
                self.memory_labels = torch.cat([self.memory_labels, labels.new_full((len(own),), c)])
        if len(self.memory):
            self.train_on("memory", self.memory, self.memory_labels, self.loss_of, self.args.balanced_epochs)
        self.guide.eval()

    @torch.no_grad()
    def new_heads(self):
        """Freeze the heads so far and begin those of this task."""
        own, dim = slice(self.n_past_classes, self.n_seen_classes), self.feature_dim
        for heads, rows in ((self.mu, self.texts[own]), (self.sigma, self.spread[own])):
            heads.requires_grad_(False)
            heads.append(nn.Linear(dim, dim).to(self.device))
            heads[-1].weight.copy_(rows.T @ rows / dim)
            nn.init.zeros_(heads[-1].bias)
        nn.init.constant_(self.sigma[-1].bias, math.log(math.expm1(self.args.sigma_start)))

    def normals(self):
        """mu and sigma (C, D) of the seen classes, each from the head of its task."""
        rows = [self.texts[slice(*self.get_offsets(t))] for t in range(len(self.mu))]
        mu = torch.cat([head(own) for head, own in zip(self.mu, rows, strict=True)])
        raw = torch.cat([head(own) for head, own in zip(self.sigma, rows, strict=True)])
        return mu, 0.999 * softplus(raw) + 0.001

    def guided(self, x):
        """(B, C, D): the seen names after attention to each image (B, D) on its own."""
        names = self.texts[: self.n_seen_classes].expand(len(x), -1, -1)
        return self.guide(names, x[:, None])

    def scores(self, x, z):
        """(B, C) of unit features and what the heads add to each name (C, D)."""
        keys = self.texts[: self.n_seen_classes] + self.guided(x) + z
        return self.net.logit_scale.detach() * (keys @ x[:, :, None])[:, :, 0]

    def loss_of(self, x, y, rows, number):
        mu, sigma = self.normals()
        noise = torch.randn(self.args.samples, *mu.shape).to(mu.device)
        draws = mu + sigma * noise  # (S, C, D)
        loss = cross_entropy(self.scores(x, draws.mean(0)), y)  # scores are linear in z
        kl = (0.5 * (mu.square() + sigma.square() - 1) - sigma.log()).sum(1).mean()
        seen = self.texts[: len(mu)]
        aligned = self.net.logit_scale.detach() * normalize(seen + draws, dim=2) @ seen.T  # (S, C, C)
        classes = torch.arange(len(mu), device=mu.device).repeat(self.args.samples)
        lasp = cross_entropy(aligned.flatten(0, 1), classes)
        return loss + self.args.kl_weight * kl + self.args.lasp_weight * lasp

    def forward(self, x):
        return self.scores(normalize(self.encode(x), dim=1), self.normals()[0])
