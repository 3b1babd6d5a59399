"""Nearest class mean on frozen CLIP features, optionally drawn toward the class name's text.

Choices: --metric cos compares directions (as SimpleCIL does with ViT features), l2 distances between raw features;
--text_weight w mixes unit prototypes, (1 - w) image mean + w text.
"""

import torch
from torch.nn.functional import normalize

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.errors import UserError
from utils.flags import fraction


class Ncm(VLMModel):
    NAME = "ncm"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--metric", choices=["cos", "l2"], default="cos", help="how an image is compared to a mean")
        parser.add_argument("--text_weight", type=fraction, default=0.0, help="share of the text in a prototype")
        return add_vlm_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.text_weight and args.metric == "l2":
            raise UserError("--text_weight mixes directions: use it with --metric cos")
        self.text = self.text_features(self.dataset.get_class_names())  # (C, D)
        self.sums = torch.zeros(self.num_classes, self.net.embed_dim, device=self.device)
        self.counts = torch.zeros(self.num_classes, device=self.device)

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        known = labels >= 0
        features = normalize(features, dim=1) if self.args.metric == "cos" else features
        self.sums.index_add_(0, labels[known], features[known])
        self.counts.index_add_(0, labels[known], torch.ones_like(labels[known], dtype=torch.float))

    def prototypes(self):
        return self.sums / self.counts.clamp(min=1)[:, None]

    def forward(self, x):
        means, seen = self.prototypes(), self.n_seen_classes
        if self.args.metric == "l2":
            return -torch.cdist(self.encode(x), means[:seen]).square()
        weight = self.args.text_weight
        return self.logits(self.encode(x), normalize((1 - weight) * normalize(means, dim=1) + weight * self.text, dim=1)[:seen])

    def future_forward(self, x):
        """Classes without images yet are represented by their text."""
        image = normalize(self.prototypes(), dim=1)
        keys = torch.where(self.counts[:, None] > 0, normalize((1 - self.args.text_weight) * image + self.args.text_weight * self.text, dim=1), self.text)
        return self.logits(self.encode(x), keys)
