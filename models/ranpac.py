"""RanPAC: ridge regression on wide random features of a frozen image tower, adapted on the first task or not at all.

McDonnell et al., NeurIPS 2023, arXiv 2307.02251.

    phase 1  --pet adapter: on the first task adapters parallel to each MLP learn by cross-entropy of a cosine head that
             is then dropped; with --pet none the tower stays as it is                               -> `adapt`
    phase 2  h(x) = relu(W_r f(x)), W_r ~ N(0, 1) fixed;  W = (G + ridge I)^-1 Q, G = sum h h^T, Q = sum h y^T
    ridge    of 10^-8 ... 10^8 the least squared error on a fifth of the task's images, fitted on the others; one
             eigendecomposition serves all 17                                                    -> `best_ridge`

Choices: CLIP's image tower stands in for the paper's ViT, its projected features for the class token. The ridge is
chosen on the current task and used for the sums of all, as in the released code; --ridge_scale images multiplies it by
images of all tasks / images of that fit, --ridge 0.1 fixes it. Phase 1 is not augmented, so that its images are those
of phase 2; SGD with momentum 0.9, weight decay 5e-4 and a cosine as published. Sums are in float64. The published
width 10,000 keeps 800 MB; 5,000 is the default.

No table has a row of it; on the picture world:
    python main.py --model ranpac --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import cross_entropy

from backbone.clip import is_vit
from backbone.clip_encoder import ClipImageEncoder
from backbone.cosine import CosineLinear
from backbone.experts import add_experts
from models.utils.random_features import RandomFeatures, add_gram, solve_ridge
from models.utils.vlm_model import add_vlm_args
from utils.errors import UserError
from utils.flags import LOOP_FLAGS, boolean, natural, positive, positive_int
from utils.randomness import generator

GRID = [10.0**power for power in range(-8, 9)]
OWN = {"lr": "pet_lr", "n_epochs": "pet_epochs", "batch_size": "pet_batch_size"}


def ridge(text):
    """Argument type: auto, or a penalty above 0."""
    return text if text == "auto" else positive(text)


def predictions(h, y, held, ridges):
    """For each ridge: `held` (K, M) times the W fitted on h (N, M) and y (N, C); one eigendecomposition for all."""
    if len(h) <= h.shape[1]:
        values, vectors = torch.linalg.eigh(h @ h.T)
        left, right = (held @ h.T) @ vectors, vectors.T @ y
    else:
        values, vectors = torch.linalg.eigh(h.T @ h)
        left, right = held @ vectors, vectors.T @ (h.T @ y)
    values = values.clamp(min=0)[:, None]
    return [left @ (right / (values + r)) for r in ridges]


class RanPac(RandomFeatures):
    NAME = "ranpac"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "") | OWN
    TOY_ARGS = {"rp_size": 16, "pet": "adapter", "pet_epochs": 1, "pet_batch_size": 8, "pet_lr": 0.5}

    @staticmethod
    def get_parser(parser):
        add = add_vlm_args(parser, names=False).add_argument
        add("--rp_size", type=natural, default=5000, help="width of the random layer, 0 for none")
        add("--ridge", type=ridge, default="auto", help="ridge penalty, or auto: chosen on a fifth of each task")
        add("--ridge_scale", choices=["none", "images"], default="none", help="grow the chosen ridge with the images")
        add("--normalize", type=boolean, default=False, help="unit features in front of the random layer")
        add("--pet", choices=["none", "adapter"], default="none", help="what the first task trains in the tower")
        add("--pet_lr", type=positive, default=0.01, help="learning rate of the first task (SGD, cosine)")
        add("--pet_epochs", type=positive_int, default=20, help="epochs of the first task")
        add("--pet_batch_size", type=positive_int, default=48, help="images per step of the first task")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        self.FROZEN_TOWER = args.pet == "none"
        super().__init__(backbone, loss, args, transform, dataset)
        self.net.requires_grad_(False)
        if args.pet == "adapter":
            if not is_vit(self.net.clip):
                raise UserError(f"--pet adapter needs transformer blocks; {self.net.name} has a ResNet: use --pet none")
            add_experts(self.net.clip.visual.transformer.resblocks, hidden=64)
        self.head, self.opt, self.schedule = None, None, None  # of phase 1, within it
        width = self.draw_layer(args.rp_size, "normal")
        self.gram = torch.zeros(width, width, dtype=torch.float64)  # G
        self.cross = torch.zeros(width, self.num_classes, dtype=torch.float64)  # Q
        self.n_images = 0
        self.weights = torch.zeros(width, self.num_classes, device=self.device)  # W

    def get_parameters(self):
        return []  # the loop trains nothing

    def checkpoint_skip(self):
        own = set() if self.FROZEN_TOWER else {"net.tokenizer", "net.preprocess"}
        return super().checkpoint_skip() | own

    def prepare(self, features):
        return super().prepare(features) if self.args.normalize else features

    def image_features(self, split):
        self.net.eval()  # no dropout in the adapters
        if self.encoder is None:  # of the adapted tower; not in a checkpoint
            self.encoder = ClipImageEncoder(self.net)
        return super().image_features(split)

    def end_task(self, dataset):
        if self.args.pet == "adapter" and not self.current_task:
            self.adapt(dataset)
        h, y = (torch.cat(parts) for parts in zip(*self.hidden_parts(*self.labeled(dataset)), strict=True))
        add_gram(self.gram, h)
        self.cross.addmm_(h.T, y)
        self.n_images += len(h)
        value = self.best_ridge(h, y) if self.args.ridge == "auto" else self.args.ridge
        self.weights = solve_ridge(self.gram, self.cross, value).float().contiguous().to(self.device)

    def best_ridge(self, h, y):
        """Fitted on four fifths of the task's h (N, M) and y (N, C), the ridge with the least error on the rest."""
        order = torch.randperm(len(h), generator=generator(self.args.seed, "ridge", self.current_task))
        held, fitted = order[: len(h) // 5], order[len(h) // 5 :]
        errors = [(p - y[held]).square().sum() for p in predictions(h[fitted], y[fitted], h[held], GRID)]
        chosen = GRID[int(torch.stack(errors).argmin())]
        return chosen * self.n_images / len(fitted) if self.args.ridge_scale == "images" else chosen

    def adapt(self, dataset):
        """Phase 1: adapters and a cosine head over the first task's classes."""
        steps = 1 if self.args.debug_mode else self.args.pet_epochs
        self.use_clip_preprocessing(dataset.train_loader.dataset)
        loader = dataset.train_loader.with_batch_size(self.args.pet_batch_size)
        self.encoder = None
        self.net.train()
        if not self.work_done:
            self.head = CosineLinear(self.feature_dim, self.n_seen_classes, scale=1.0).to(self.device)
            trained = [p for p in (*self.net.parameters(), *self.head.parameters()) if p.requires_grad]
            self.opt = torch.optim.SGD(trained, self.args.pet_lr, 0.9, weight_decay=5e-4)
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, steps)
        for epoch in self.work("adapter", steps):
            self.work_loss = torch.stack([self.step(*batch[:2]) for batch in loader.epoch(epoch)]).mean()
            self.schedule.step()
        self.head = self.opt = self.schedule = None

    def step(self, inputs, labels):
        labels = labels.to(self.device)
        self.opt.zero_grad()
        loss = cross_entropy(self.head(self.encode(inputs.to(self.device)))[labels >= 0], labels[labels >= 0].long())
        loss.backward()
        self.opt.step()
        return loss.detach()

    def forward(self, x):
        return (self.hidden(self.encode(x)) @ self.weights)[:, : self.n_seen_classes]
