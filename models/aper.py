"""APER: the first task adapts a frozen transformer with few parameters; after that every class is a mean.

Zhou et al., IJCV 2024, arXiv 2303.07338. SimpleCIL is --pet none (and `ncm`, with means of unit features).

    first task   --pet adapter, ssf, vpt-deep or vpt-shallow, trained with a cosine head that is thrown away -> `adapt`
    prototypes   means of [features of the frozen network ; of the adapted one]                        -> `end_task`
    test         cosine with the prototypes

Choices: means and test features are raw, so the half with the longer features counts more. The training head's scale is
learned from --head_scale on. The rate falls by a cosine over --n_epochs. Full fine-tuning of a copy is left out. An
adapter reads what enters the MLP's norm; ssf scales and shifts every layer of the tower but the last projection.

No table has a row of it; on the picture world:
    python main.py --model aper --pet adapter --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.adapters import ScaledLayers
from backbone.cosine import CosineLinear
from backbone.edits import AdapterSet, Chain, FreshTokens
from models.utils.tower_model import TowerModel, add_tower_args
from utils.errors import UserError
from utils.flags import positive, positive_int
from utils.schedulers import warmup_cosine

SCALE = 0.1  # of an adapter
OWN = {"ffn_num": ("adapter", 64), "vpt_length": ("vpt", 5)}  # flag: the start of its --pet, and default


class Aper(TowerModel):
    NAME = "aper"
    trains_in_loop = False
    TOY_ARGS = {"lr": 0.5, "clip_grad": 0.1}
    NOT_TRIED = dict.fromkeys(OWN, "belongs to one --pet; tests/test_aper.py")

    @staticmethod
    def get_parser(parser):
        add = add_tower_args(parser).add_argument
        parser.set_defaults(optimizer="sgd", lr=0.01, optim_mom=0.9, optim_wd=5e-4, n_epochs=20, batch_size=48)
        pets = ["adapter", "ssf", "vpt-deep", "vpt-shallow", "none"]
        add("--pet", choices=pets, default="adapter", help="what the first task trains")
        add("--ffn_num", type=positive_int, help="adapter: its width (default: 64)")
        add("--vpt_length", type=positive_int, help="vpt: prompt tokens (default: 5)")
        add("--head_scale", type=positive, default=1.0, help="first scale of the training head")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        for flag, (pet, default) in OWN.items():
            given = getattr(args, flag)
            if given is not None and not args.pet.startswith(pet):
                raise UserError(f"--{flag} changes nothing with --pet {args.pet}: leave it out, or choose --pet {pet}")
            setattr(self, flag, default if given is None else given)
        self.pet = self.make_pet()
        halves = 1 if self.pet is None else 2
        self.register_buffer("sums", torch.zeros(self.num_classes, halves * self.width))
        self.register_buffer("counts", torch.zeros(self.num_classes))
        self.to(self.device)

    def make_head(self, width):
        self.head = CosineLinear(width, self.num_classes, self.args.head_scale)

    def begin_task(self, dataset):
        if self.pet is not None and not self.current_task:
            self.opt = self.get_optimizer()

    def make_pet(self):
        kind = self.args.pet
        if kind == "adapter":
            return AdapterSet(self.n_layers, self.width, self.ffn_num, SCALE)
        if kind == "ssf":
            return ScaledLayers(self.tower)
        layers = {"vpt-deep": self.n_layers, "vpt-shallow": 1}.get(kind)
        if layers is None:
            return None
        bound = (3 / self.width) ** 0.5
        return nn.ParameterList([bound * (2 * torch.rand(layers, self.vpt_length, self.width) - 1)])

    def adapted(self, images):
        """States (B, W) of the adapted network."""
        if self.args.pet == "adapter":
            return self.states(images, edits=self.pet.edits())
        if self.args.pet == "ssf":
            return self.states(images, weights=self.pet.weights(self.tower))
        first, *later = self.pet[0]
        edits = [Chain(()), *(FreshTokens(own) for own in later)] if later else None
        return self.states(images, first.expand(len(images), -1, -1), edits)

    def features(self, images):
        """[states ; adapted states]"""
        bare = self.states(images)
        return bare if self.pet is None else torch.cat([bare, self.adapted(images)], dim=1)

    def end_task(self, dataset):
        if self.current_task == 0 and self.pet is not None:
            self.adapt(dataset)
        sums, counts = self.class_sums(dataset, self.features)
        self.sums, self.counts = self.sums + sums, self.counts + counts

    def adapt(self, dataset):
        epochs = 1 if self.args.debug_mode else self.args.n_epochs
        for epoch in self.work(self.args.pet, epochs):
            for group in self.opt.param_groups:
                group["lr"] = self.args.lr * warmup_cosine(epoch, 0, epochs)
            for images, labels, *_ in dataset.train_loader.epoch(epoch):
                images, labels = images[labels >= 0].to(self.device), labels[labels >= 0].to(self.device)
                logits = self.head(self.adapted(images))[:, : self.n_seen_classes]
                self.work_loss = self.step(cross_entropy(logits, labels))
        self.pet.requires_grad_(False)
        self.head = self.opt = None

    def answers(self, x):
        keys = self.sums / self.counts.clamp(min=1)[:, None]
        return normalize(self.features(x), dim=1) @ normalize(keys[: self.n_seen_classes], dim=1).T
