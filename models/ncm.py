"""Nearest class mean on frozen CLIP features, optionally drawn toward the class name's text.

As SimpleCIL does with ViT features (Zhou et al. 2023, arXiv 2303.07338), but a class mean is the mean of unit features.
Choices: --text_weight w makes prototypes (1 - w) image mean + w text, both of unit length; 0 ignores the text.

Row of docs/tiny_world.md, by scripts/tiny_world.py, one seed:
    python main.py --model ncm --dataset seq-tiny --permute_classes 1 --device cpu --seed 0 --picture_seed 0
"""

import torch
from torch.nn.functional import normalize

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, fraction


class Ncm(VLMModel):
    NAME = "ncm"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    TOY_ARGS = {"text_weight": 0.5}  # a small run in which every flag matters

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--text_weight", type=fraction, default=0.0, help="weight of the text in a prototype")
        return add_vlm_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.text = self.text_features(self.dataset.get_class_names())  # (C, D)
        self.sums = torch.zeros(self.num_classes, self.net.embed_dim, device=self.device)
        self.counts = torch.zeros(self.num_classes, device=self.device)

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        known = labels >= 0
        self.sums.index_add_(0, labels[known], self.rows(features[known]))
        self.counts.index_add_(0, labels[known], torch.ones_like(labels[known], dtype=torch.float))

    def rows(self, features):
        """What class means are of."""
        return normalize(features, dim=1)

    def keys(self):
        """Unit prototypes (C, D); a class without images yet is represented by its text."""
        weight = self.args.text_weight
        mixed = normalize((1 - weight) * normalize(self.sums, dim=1) + weight * self.text, dim=1)
        return torch.where(self.counts[:, None] > 0, mixed, self.text)

    def forward(self, x):
        return self.logits(self.encode(x), self.keys()[: self.n_seen_classes])

    def future_forward(self, x):
        return self.logits(self.encode(x), self.keys())
