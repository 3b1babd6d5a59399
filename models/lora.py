"""Low-rank terms B A on attention weights, one per task, all added up: O-LoRA, InfLoRA or SD-LoRA by --form.

The terms of past tasks are frozen, a head grows by the task's classes, CE among those; --lora_rank rows per A. No
task is asked for at test: the sum is one network, and could be added to its weights.

o    queries, values; A and B trained; + lambda_1 * sum |A_old A^T| + lambda_2 * (|A| + |B|)      -> `penalty`
     Wang et al., EMNLP Findings 2023, arXiv 2310.14152
inf  keys, values; only B trained. A: the first directions of the inputs' second moment (I - P) C (I - P), over
     sqrt(3); P projects on the directions that hold a share of the energy of past inputs   -> `design`, `absorb`
     Liang & Li, CVPR 2024, arXiv 2404.00228; the share is lamb + (lame - lamb) t / tasks
sd   queries, values; past terms alpha_i B_i A_i / (|B_i| |A_i|), the newest alpha_t B_t A_t, all alphas trained
     Wu et al., ICLR 2025, arXiv 2501.13198                                                         -> `sizes`

Choices: A is drawn with variance 1 / (3 W), B is 0. inf: energy is that of the inputs (Gradient Projection Memory);
P is kept as such, not as a basis or its complement, which is the same space. sd: alphas of past tasks go on from their
values, new ones start at --alpha_init; the forms with decreasing rank are left out. Published: inf --lr 5e-4 (Adam),
sd --optimizer sgd --optim_mom 0.9 --lr 0.008, o --lr 1e-3 --lora_rank 8.

No table has a row of it; on the picture world:
    python main.py --model lora --form inf --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn

from backbone.edits import PLACES, Chain, LowRank, SecondMoment
from models.utils.tower_model import TowerModel, add_tower_args
from utils.errors import UserError
from utils.flags import non_negative, positive_int, share

FORMS = {"inf": ("key", "value"), "sd": ("query", "value"), "o": ("query", "value")}
OWN = {"lamb": ("inf", 0.95), "lame": ("inf", 1.0), "alpha_init": ("sd", 0.8), "lambda_1": ("o", 0.5)}
OWN |= {"lambda_2": ("o", 0.0)}  # flag: its form and default


class Lora(TowerModel):
    NAME = "lora"
    TOY_ARGS = {"lora_rank": 2, "lr": 0.02, "clip_grad": 0.5}
    NOT_TRIED = dict.fromkeys(OWN, "belongs to one form; tests/test_lora.py")

    @staticmethod
    def get_parser(parser):
        add = add_tower_args(parser).add_argument
        parser.set_defaults(optimizer="adam", lr=5e-4)
        add("--form", choices=list(FORMS), default="inf", help="which rule makes and adds the terms")
        add("--lora_rank", type=positive_int, default=10, help="rank of a task's term")
        add("--lamb", type=share, help="inf: share of the energy kept free of later tasks, at first (default: 0.95)")
        add("--lame", type=share, help="inf: that share after the last task (default: 1)")
        add("--alpha_init", type=non_negative, help="sd: first size of a task's term (default: 0.8)")
        add("--lambda_1", type=non_negative, help="o: weight of the overlap with earlier terms (default: 0.5)")
        add("--lambda_2", type=non_negative, help="o: weight of the norms of the term (default: 0)")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        for flag, (form, default) in OWN.items():
            given = getattr(args, flag)
            if given is not None and form != args.form:
                raise UserError(f"--{flag} changes nothing with --form {args.form}: leave it out, or --form {form}")
            setattr(self, flag, default if given is None else given)
        if args.lora_rank > self.width:
            raise UserError(f"--lora_rank {args.lora_rank} is more than the network's width {self.width}")
        self.places = tuple(PLACES[name] for name in FORMS[args.form])
        self.A, self.B = nn.ParameterList(), nn.ParameterList()  # per task (L, K, r, W) and (L, K, W, r)
        self.alphas = nn.ParameterList()  # per task, form sd
        empty = torch.zeros(self.n_layers, self.width, self.width) if args.form == "inf" else None
        self.register_buffer("kept", empty)  # P (L, W, W)
        self.to(self.device)

    def new_task(self, dataset):
        shape = self.n_layers, len(self.places), self.args.lora_rank, self.width
        if self.args.form == "inf":
            A = self.design(self.second_moments(dataset)).float()[:, None].expand(shape).clone()
        else:
            A = (2 * torch.rand(shape) - 1) * self.width**-0.5
        for kept in (self.A, self.B):
            kept.requires_grad_(False)
        self.A.append(nn.Parameter(A.to(self.device), requires_grad=self.args.form != "inf"))
        self.B.append(nn.Parameter(torch.zeros_like(A.mT, device=self.device, memory_format=torch.contiguous_format)))
        if self.args.form == "sd":
            self.alphas.append(nn.Parameter(torch.tensor(self.alpha_init, device=self.device)))

    def sizes(self):
        """Factors (L, K, 1, T) or 1 of the terms: sd divides those of past tasks by their norms."""
        if self.args.form != "sd":
            return [1.0] * len(self.B)
        past = [a.norm(dim=(2, 3)) * b.norm(dim=(2, 3)) for a, b in zip(self.A[:-1], self.B[:-1], strict=True)]
        norms = [norm[..., None, None].clamp(min=1e-12) for norm in past]
        return [alpha / norm for alpha, norm in zip(self.alphas, [*norms, 1.0], strict=True)]

    def edits(self):
        """The sum of all terms, for each block."""
        if not len(self.A):
            return None
        down = torch.cat(list(self.A), dim=2)
        up = torch.cat([size * b for size, b in zip(self.sizes(), self.B, strict=True)], dim=3)
        return [LowRank(*pair, self.places) for pair in zip(down, up, strict=True)]

    def penalty(self):
        """Form o: overlap of the rows of A with those of past tasks, and the norms of the term."""
        a, b = self.A[-1], self.B[-1]
        overlap = sum((old @ a.mT).abs().sum() for old in self.A[:-1])
        norms = (a.norm(dim=(2, 3)) + b.norm(dim=(2, 3))).sum() if self.lambda_2 else 0.0
        return self.lambda_1 * overlap + self.lambda_2 * norms

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss = self.answer_loss(self.head(self.states(inputs, edits=self.edits())), labels)
        return self.step(loss + self.penalty() if self.args.form == "o" else loss)

    def answers(self, x):
        return self.head.spread(self.head(self.states(x, edits=self.edits())))

    def end_task(self, dataset):
        if self.args.form == "inf":
            held = self.lamb + (self.lame - self.lamb) * self.current_task / self.n_tasks
            self.kept = absorb(self.kept, self.second_moments(dataset), held).float()

    @torch.no_grad()
    def second_moments(self, dataset):
        """Sums (L, W, W) of h h^T over the inputs of each block's attention, of the task's training images."""
        total = torch.zeros(self.n_layers, self.width, self.width, dtype=torch.float64, device=self.device)
        terms = self.edits() or [Chain(())] * self.n_layers
        watched = [Chain((term, SecondMoment(own))) for term, own in zip(terms, total, strict=True)]
        for images, _ in self.plain_pass(dataset):
            self.states(images, edits=watched)
        return total

    def design(self, moments):
        """(L, r, W): directions of the inputs that past tasks do not use."""
        free = torch.eye(self.width, dtype=moments.dtype, device=moments.device) - self.kept
        directions = torch.linalg.eigh(free @ moments @ free).eigenvectors[..., -self.args.lora_rank :]
        return (free @ directions).flip(2).mT / 3**0.5


def absorb(kept, moments, share: float):
    """Projectors (L, W, W) on the kept directions and those that bring their energy to `share` of the moments'."""
    free = torch.eye(kept.shape[-1], dtype=moments.dtype, device=kept.device) - kept
    energy, directions = torch.linalg.eigh(free @ moments @ free)
    energy, directions = energy.flip(1).clamp(min=0), directions.flip(2)
    whole = moments.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).clamp(min=1e-30)
    before = 1 - (energy.sum(1, keepdim=True) - energy.cumsum(1) + energy) / whole  # held without this direction
    new = directions * ((before < share) & (energy > 1e-12 * whole))[:, None]
    return kept + new @ new.mT
