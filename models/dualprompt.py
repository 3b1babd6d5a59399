"""DualPrompt: general prefixes in the first layers, in later ones a task-specific prefix, selected by the nearest key.

Wang et al., ECCV 2022, arXiv 2204.04799. Prompts are prefix tokens: K <- [p_K ; K], V <- [p_V ; V].

    training  the expert prefix of the task, its key pulled toward queries                     -> `observe`
    test      the expert prefix whose key has the largest cosine with the query                -> `answers`
    loss      CE among the task's classes - pull_constraint_coeff * cos(q, key of the task)

Choices: a task's prefix starts as a copy of the one before. Keys of tasks not seen yet are not used at test time. Key
and value rows are indexed by sample, never reshaped together (the published ports mix images of a batch there).
Layers default to the paper's (0, 1 and 2, 3, 4) where the network has five or more, else to the first third and the
rest. The batch-wise vote is left out, as in l2p; on images with questions the sequence is the fused one.

Row of docs/clumo.md, by scripts/claims/clumo.yaml, one seed:
    python main.py --model dualprompt --query both --kd_weight 1 --dataset clove-tiny-rules --factor kind --device cpu \
        --seed 0 --picture_seed 0
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from backbone.fusion import TOY_FUSION
from models.utils.prompt_model import PromptModel, add_prompt_args
from utils.errors import UserError
from utils.flags import natural, non_negative, positive, positive_int


class DualPrompt(PromptModel):
    NAME = "dualprompt"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = TOY_FUSION | {
        "size": 3,
        "length": 2,
        "g_prompt_length": 2,
        "fusion_layers": 2,
        "clip_grad": 0.5,
    }

    @staticmethod
    def get_parser(parser):
        add = add_prompt_args(parser).add_argument
        add("--g_prompt_length", type=natural, default=5, help="tokens of the general prefix, 0 for none")
        add("--g_prompt_layer_idx", type=natural, nargs="+", help="layers of the general prefix")
        add("--e_prompt_layer_idx", type=natural, nargs="+", help="layers of the expert prefix")
        add("--size", type=positive_int, default=10, help="expert prefixes, one per task")
        add("--length", type=positive_int, default=5, help="tokens of an expert prefix")
        add("--prompt_range", type=positive, default=1.0, help="prefixes are initialized uniformly in [-x, x]")
        add("--pull_constraint_coeff", type=non_negative, default=1.0, help="weight of pulling keys toward queries")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.size < self.n_tasks:
            raise UserError(
                f"--size {args.size}: {self.dataset.NAME} has {self.n_tasks} tasks, and each needs a prefix"
            )
        first = list(range(2 if self.n_layers >= 5 else max(1, self.n_layers // 3)))
        rest = list(range(len(first), min(self.n_layers, 5)))
        self.g_layers = args.g_prompt_layer_idx or first
        self.e_layers = args.e_prompt_layer_idx or rest or first
        for layer in (*self.g_layers, *self.e_layers):
            if layer >= self.n_layers:
                raise UserError(
                    f"prefix layer {layer}: the network has {self.n_layers} layers, 0 to {self.n_layers - 1}"
                )

        def uniform(*shape):
            return nn.Parameter((args.prompt_range * (2 * torch.rand(shape) - 1)).to(self.device))

        self.g = uniform(len(self.g_layers), 2, args.g_prompt_length, self.width)
        self.e = uniform(args.size, len(self.e_layers), 2, args.length, self.width)
        self.keys = nn.Parameter((2 * torch.rand(args.size, self.query_dim) - 1).to(self.device))

    def new_task(self, split):
        if self.current_task:
            with torch.no_grad():
                self.e[self.current_task] = self.e[self.current_task - 1]

    def prefixes(self, slots):
        """(B, 2, P, W) by layer, for expert prefixes of the slots (B,); in a layer with both, general come first."""
        found = {}
        if self.args.g_prompt_length:
            found = {layer: self.g[n].expand(len(slots), -1, -1, -1) for n, layer in enumerate(self.g_layers)}
        own = self.e[slots]  # (B, layers, 2, P, W)
        for n, layer in enumerate(self.e_layers):
            found[layer] = torch.cat([found[layer], own[:, n]], dim=2) if layer in found else own[:, n]
        return found

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, query=None):
        x, query = self.prepare(inputs, query)
        slots = torch.full_like(labels, self.current_task)
        loss = self.head_loss(self.body(x, prefixes=self.prefixes(slots)), labels)
        key = normalize(self.keys[self.current_task], dim=0)
        return self.step(loss - self.args.pull_constraint_coeff * (query @ key).mean())

    @torch.no_grad()
    def answers(self, x, query):
        seen = min(self.n_tasks, self.current_task + self.training) or 1
        slots = (query @ normalize(self.keys[:seen], dim=1).T).argmax(1)
        return self.head.spread(self.head(self.body(x, prefixes=self.prefixes(slots))))
