"""EASE: a set of adapters per task, each a subspace in which all classes have a prototype; old ones are synthesized.

Zhou et al., CVPR 2024, arXiv 2403.12030.

    task      adapters beside every MLP, trained with a cosine head of the task's classes that is thrown away
    after it  prototypes: mean features of the new classes under every adapter set so far        -> `end_task`
    old class in the new subspace: sum_j softmax_j(cos(p, p_j)) q_j, with its prototype p and those of the new classes
              p_j in its own subspace, and q_j theirs in the new one                             -> `synthesized`
    test      cosine in the subspace of a class's own task + alpha * mean of the cosines in the others -> `answers`

Choices: an adapter reads what enters the MLP's norm. Prototypes are means of raw features. The training head's scale is
learned from --head_scale on. The bare network as one more subspace (weight 0 in the released settings) is left out.

No table has a row of it; on the picture world:
    python main.py --model ease --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from backbone.cosine import CosineLinear
from backbone.edits import AdapterSet
from models.utils.tower_model import TowerModel, add_tower_args
from utils.flags import non_negative, positive, positive_int

SCALE = 0.1  # of an adapter


class Ease(TowerModel):
    NAME = "ease"
    COMPATIBILITY = ["class-il", "task-il"]
    TOY_ARGS = {"ffn_num": 4, "lr": 0.1, "clip_grad": 0.1}

    @staticmethod
    def get_parser(parser):
        add = add_tower_args(parser).add_argument
        parser.set_defaults(optimizer="sgd", lr=0.025, optim_mom=0.9, optim_wd=5e-4, lr_scheduler="cosine")
        add("--ffn_num", type=positive_int, default=64, help="width of an adapter")
        add("--alpha", type=non_negative, default=0.1, help="weight of the subspaces of other tasks")
        add("--head_scale", type=positive, default=1.0, help="first scale of the training head")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        sets = [AdapterSet(self.n_layers, self.width, args.ffn_num, SCALE) for _ in range(self.n_tasks)]
        self.adapters = nn.ModuleList(sets).to(self.device).requires_grad_(False)
        self.register_buffer("prototypes", torch.zeros(0, self.num_classes, self.width, device=self.device))
        self.register_buffer("owner", torch.zeros(self.num_classes, dtype=torch.long, device=self.device))

    def make_head(self, width, n_classes=0):
        self.head = CosineLinear(width, n_classes, self.args.head_scale).to(self.device)

    def grow_head(self, split):
        self.make_head(self.width, self.n_classes_current_task)

    def new_task(self, dataset):
        for task, own in enumerate(self.adapters):
            own.requires_grad_(task == self.current_task)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        states = self.states(inputs, edits=self.adapters[self.current_task].edits())
        return self.step(cross_entropy(self.head(states), labels - self.n_past_classes))

    def subspaces(self, images, n):
        """States (B, n, W) under the first n adapter sets."""
        return torch.stack([self.states(images, edits=own.edits()) for own in self.adapters[:n]], dim=1)

    def end_task(self, dataset):
        sums, count = self.class_sums(dataset, lambda images: self.subspaces(images, self.current_task + 1).flatten(1))
        means = (sums / count.clamp(min=1)[:, None]).unflatten(1, (-1, self.width)).transpose(0, 1)  # (T, C, W)
        new, old = slice(self.n_past_classes, self.n_seen_classes), slice(self.n_past_classes)
        self.owner[new] = self.current_task
        self.prototypes = torch.cat([self.prototypes, torch.zeros_like(means[:1])])
        self.prototypes[:, new] = means[:, new]
        if self.n_past_classes:
            own = self.owner[old]
            known = self.prototypes[own, torch.arange(len(own), device=own.device)]  # (O, W)
            self.prototypes[-1, old] = synthesized(known, means[own, new], means[-1, new])

    def answers(self, x):
        if not len(self.prototypes):  # before the end of the first task
            return x.new_zeros(len(x), self.n_seen_classes)
        n = len(self.prototypes)
        states = normalize(self.subspaces(x, n), dim=2)
        shares = self.args.alpha / max(1, n - 1) * torch.ones(n, self.n_seen_classes, device=x.device)
        shares.scatter_(0, self.owner[None, : self.n_seen_classes], 1.0)
        keys = shares[..., None] * normalize(self.prototypes[:, : self.n_seen_classes], dim=2)
        return torch.einsum("btw,tcw->bc", states, keys)


def synthesized(own, new_there, new_here):
    """Prototypes (O, W) of old classes here, from theirs (O, W) and the new classes' (O, n, W) in their own subspaces,
    and the new classes' here (n, W)."""
    return cosine_similarity(own[:, None], new_there, dim=2).softmax(1) @ new_here
