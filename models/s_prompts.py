"""S-Prompts: prompts and a head for each task, selected at test time by the nearest k-means center.

Wang, Huang & Hong, NeurIPS 2022, arXiv 2207.12819 (the form with prompts of the image side).

    training  [CLS ; prompts of the task ; the rest], CE over the task's classes               -> `observe`
    end       k-means centers of the task's frozen features                                    -> `new_task`
    test      the task of the nearest center gives prompts and head                            -> `answers`

Choices: centers are made in mini-batches and before training, which makes no difference since features are frozen. On
images with questions the sequence is the fused one, and centers are of the image's features, or with --query both
of the question's too. Answers of other tasks do not get a logit. --head shared, a control, trains one growing head over
the tasks in place of a head for each; only that one can forget, and be distilled (--kd_weight).

Row of docs/clumo.md, by scripts/claims/clumo.yaml, one seed:
    python main.py --model s-prompts --query both --head shared --kd_weight 1 --dataset clove-tiny-rules --factor kind \
        --device cpu --seed 0 --picture_seed 0
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from backbone.fusion import TOY_FUSION, UNSEEN
from models.utils.prompt_model import PromptModel, add_prompt_args
from models.utils.vlm_model import EVAL_ROWS
from utils.errors import UserError
from utils.flags import positive, positive_int
from utils.kmeans import distances, minibatch_kmeans
from utils.randomness import generator


class SPrompts(PromptModel):
    NAME = "s-prompts"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = TOY_FUSION | {
        "n_centroids": 2,
        "length": 2,
        "clip_grad": 0.5,
    }
    NOT_TRIED = {"kd_weight": "needs --head shared; tests/test_head_distillation.py"}

    @staticmethod
    def get_parser(parser):
        add = add_prompt_args(parser).add_argument
        add("--n_centroids", type=positive_int, default=5, help="k-means centers per task")
        add("--length", type=positive_int, default=10, help="prompt tokens per task")
        add("--prompt_range", type=positive, default=0.1, help="prompts are initialized uniformly in [-x, x]")
        add("--head", choices=["task", "shared"], default="task", help="a head for each task, or one for all")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.kd_weight and args.head == "task":
            raise UserError("--kd_weight needs one head for all tasks: add --head shared, or leave it out")
        self.prompts, self.heads = nn.ParameterList(), nn.ParameterList()  # (L, W) and (C, W + 1) of each task
        self.register_buffer("centres", torch.zeros(0, args.n_centroids, self.query_dim, device=self.device))
        self.register_buffer("answered", torch.zeros(0, self.num_classes, dtype=torch.bool, device=self.device))

    def queries(self, split):
        """Unit features (N, D) of a training split."""
        if self.uses == "fused":
            return torch.cat([self.prepare(part)[1] for part in split.data.split(EVAL_ROWS)])
        if self.uses == "clip":
            return torch.nn.functional.normalize(split.query.to(self.device), dim=1)
        parts = torch.arange(len(split)).split(EVAL_ROWS)
        return torch.cat(
            [self.prepare(torch.stack([split[int(i)][0] for i in part]).to(self.device))[1] for part in parts]
        )

    def new_task(self, split):
        for old in (*self.prompts, *self.heads):
            old.requires_grad_(False)
        rng = generator(self.args.seed, "s-prompts", self.current_task)
        centres = minibatch_kmeans(self.queries(split), self.args.n_centroids, rng)
        self.centres = torch.cat([self.centres, centres[None]])
        answers = torch.zeros(1, self.num_classes, dtype=torch.bool).index_fill(
            1, split.targets[split.targets >= 0], True
        )
        self.answered = torch.cat([self.answered, answers.to(self.device)])
        prompts = self.args.prompt_range * (2 * torch.rand(self.args.length, self.width) - 1)
        self.prompts.append(nn.Parameter(prompts.to(self.device)))
        if self.args.head == "shared":
            return
        head = torch.cat(
            [(2 * torch.rand(self.num_classes, self.width) - 1) * self.width**-0.5, torch.zeros(self.num_classes, 1)], 1
        )
        self.heads.append(nn.Parameter(head.to(self.device)))

    def states(self, x, pool):
        """(B, W) by prompts of the tasks (B,)."""
        return self.body(x, torch.stack(list(self.prompts))[pool])

    def logits(self, x, pool):
        """(B, C) by prompts and head of the tasks (B,)."""
        states = self.states(x, pool)
        if self.args.head == "shared":
            return self.head.spread(self.head(states))
        heads = torch.stack(list(self.heads))  # (T, C, W + 1)
        every = torch.einsum("bd,tcd->tbc", states, heads[..., :-1]) + heads[:, None, :, -1]
        return every[pool, torch.arange(len(pool), device=pool.device)].masked_fill(~self.answered[pool], UNSEEN)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, query=None):
        x, _ = self.prepare(inputs, query)
        pool = torch.full_like(labels, len(self.prompts) - 1)
        if self.args.head == "shared":
            return self.step(self.head_loss(self.states(x, pool), labels))
        return self.step(cross_entropy(self.logits(x, pool), labels))

    @torch.no_grad()
    def answers(self, x, query):
        if not len(self.prompts):  # before the first task
            return torch.full((len(query), self.num_classes), UNSEEN, device=self.device)
        near = distances(query, self.centres.flatten(0, 1)).argmin(1)
        return self.logits(x, near // self.args.n_centroids)
