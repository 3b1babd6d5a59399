"""PROOF: projections of frozen CLIP features that are summed over tasks, and attention between image, names and means.

Zhou et al., TPAMI 2025, arXiv 2305.19270.

    projections  image a = sum_t P_t(f), name w = sum_t Q_t(t), class mean p = sum_t P_t(mu); the newest pair is trained
    fusion       one head of self-attention over [a, all w, all p, 3 contexts per task], residual and norm -> `fused`
    loss         cross-entropy of the fused image with fused names and with fused means over the seen classes
                 + CLIP's loss between the projected images of the batch and their names                  -> `loss_of`
    scores       the sum of projected, fused-name and fused-mean cosines times exp(logit_scale)
    memory       features of --exemplars images per class, herded, trained with those of the task

Choices: each image attends on its own (the released code averages the fused names over the batch, also at test);
features enter with unit length in training and at test; old projections and contexts are frozen in both towers; equal
classes in a batch are not each other's negatives. --proj_init identity starts at zero-shot CLIP, as a map that is
added must not undo what there is; linear is torch's own start. Exemplars are kept as features, not images.

No table has a row of it; on the picture world:
    python main.py --model proof --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from models.utils.feature_training import FeatureTraining
from models.utils.projections import SummedLinear, paired_contrast
from models.utils.vlm_model import add_vlm_args
from utils.class_means import class_means
from utils.flags import fraction, natural
from utils.memory.exemplars import herd


class Proof(FeatureTraining):
    NAME = "proof"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"lr": 0.01, "exemplars": 3}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=1e-3, optim_mom=0.9, optim_wd=0.05, n_epochs=10, batch_size=64, lr_scheduler="cosine")
        add = add_vlm_args(parser).add_argument
        add("--exemplars", type=natural, default=20, help="features kept per class")
        add("--contexts", type=natural, default=3, help="context vectors per task")
        add("--fusion_dropout", type=fraction, default=0.1, help="dropout in the attention")
        add("--proj_init", choices=["identity", "linear"], default="identity", help="start of the projections")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        dim = self.feature_dim
        self.texts = self.text_features(self.dataset.get_class_names())  # (C, D)
        self.means = torch.zeros(self.num_classes, dim, device=self.device)  # of unit features
        self.memory = torch.zeros(0, dim, device=self.device)  # unit features of old classes
        self.memory_labels = torch.zeros(0, dtype=torch.long, device=self.device)
        self.seer, self.reader = (SummedLinear(dim, args.proj_init).to(self.device) for _ in range(2))
        self.attention = nn.MultiheadAttention(dim, 1, args.fusion_dropout, batch_first=True).to(self.device)
        self.norm = nn.LayerNorm(dim).to(self.device)
        self.past = torch.zeros(0, dim, device=self.device)  # contexts of older tasks
        self.context = nn.Parameter(self.new_context())
        self.opt = self.get_optimizer()

    def new_context(self):
        return 0.02 * torch.randn(self.args.contexts, self.feature_dim).to(self.device)

    def get_parameters(self):
        if not hasattr(self, "context"):
            return []
        parts = self.seer.newest, self.reader.newest, self.attention, self.norm
        return [self.context, *(p for part in parts for p in part.parameters())]

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        features = normalize(features, dim=1)
        if not self.work_done:
            self.begin(features, labels)
        x, y = torch.cat([features, self.memory]), torch.cat([labels, self.memory_labels])
        self.train_on("projections", x, y, self.loss_of)
        if self.args.exemplars:
            for c in labels.unique().tolist():
                own = features[labels == c]
                own = own[herd(own, self.args.exemplars)]
                self.memory = torch.cat([self.memory, own])
                self.memory_labels = torch.cat([self.memory_labels, labels.new_full((len(own),), c)])

    def begin(self, features, labels):
        """New projections and contexts, and the means of the new classes."""
        first, end = self.n_past_classes, self.n_seen_classes
        self.means[first:end] = class_means(features[None], labels, self.num_classes)[0, first:end]
        if self.current_task:
            self.seer.grow()
            self.reader.grow()
            self.past = torch.cat([self.past, self.context.detach()])
            self.context.data = self.new_context()

    def projected(self, x):
        """Projected images (B, D) of unit features, names and means (C, D) of the seen classes."""
        seen = self.n_seen_classes
        return self.seer(x), self.reader(self.texts[:seen]), self.seer(self.means[:seen])

    def fused(self, images, names, means):
        """Unit rows after attention: images (B, D), names (B, C, D), means (B, C, D)."""
        shared = torch.cat([names, means, self.past, self.context]).expand(len(images), -1, -1)
        tokens = torch.cat([images[:, None], shared], dim=1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        out = normalize(self.norm(tokens + mixed), dim=2)
        seen = len(names)
        return out[:, 0], out[:, 1 : 1 + seen], out[:, 1 + seen : 1 + 2 * seen]

    def scores(self, images, others):
        """exp(logit_scale) times products of (B, D) with (B, C, D)."""
        return self.net.logit_scale.detach() * (others @ images[:, :, None])[:, :, 0]

    def loss_of(self, x, y, rows, number):
        images, names, means = self.projected(x)
        fused, fused_names, fused_means = self.fused(images, names, means)
        loss = cross_entropy(self.scores(fused, fused_names), y) + cross_entropy(self.scores(fused, fused_means), y)
        scale = self.net.logit_scale.detach()
        return loss + paired_contrast(normalize(images, dim=1), normalize(names, dim=1)[y], y, scale)

    def forward(self, x):
        images, names, means = self.projected(normalize(self.encode(x), dim=1))
        fused, fused_names, fused_means = self.fused(images, names, means)
        plain = self.logits(images, normalize(names, dim=1))
        return plain + self.scores(fused, fused_names) + self.scores(fused, fused_means)
