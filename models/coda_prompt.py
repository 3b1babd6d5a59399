"""CODA-Prompt: prefixes that are weighted sums of all components learned so far; each task adds some and freezes them.

Smith et al., CVPR 2023, arXiv 2211.13218. With the query q and the key K_m, attention A_m, prompt P_m of a component,

    weights  alpha_m = cos(q * A_m, K_m)                                                       -> attended_cosines
    prefix   sum_m alpha_m P_m, the first half keys and the second half values, in layers 0 to 4 -> `prefixes`
    task     pool_size / tasks new components, orthonormal to the ones before (Gram-Schmidt)   -> `new_task`
    loss     CE among the task's classes + ortho_mu * sum over P, K, A of mean (X X^T - I)^2   -> `penalty`

Choices: --ortho_mu is 0 as in the released configurations. Components of later tasks take no part, those of earlier
ones no gradient. The learning rate follows a cosine over the epochs of a task (--lr_scheduler). If the pool is not a
multiple of the number of tasks, the rest is not used. On images with questions the sequence is the fused one.

No table has a row of it; on the picture world:
    python main.py --model coda-prompt --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn

from backbone.cosine import attended_cosines
from backbone.fusion import TOY_FUSION
from models.utils.prompt_model import PromptModel, add_prompt_args
from utils.errors import UserError
from utils.flags import non_negative, positive_int

LAYERS = 5  # that have a prefix, of larger networks


class CodaPrompt(PromptModel):
    NAME = "coda-prompt"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    RATE_BATCH = None
    TOY_ARGS = TOY_FUSION | {"pool_size": 6, "prompt_len": 4, "n_epochs": 2, "lr": 0.05, "clip_grad": 0.5}

    @staticmethod
    def get_parser(parser):
        add = add_prompt_args(parser).add_argument
        parser.set_defaults(lr=1e-3, lr_scheduler="cosine", clip_grad=0.0)
        add("--pool_size", type=positive_int, default=100, help="components of all tasks together")
        add("--prompt_len", type=positive_int, default=8, help="rows of a component: half keys, half values")
        add("--ortho_mu", type=non_negative, default=0.0, help="weight of the term that keeps components orthogonal")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.per_task = args.pool_size // self.n_tasks
        if not self.per_task or args.pool_size > self.query_dim:
            raise UserError(
                f"--pool_size {args.pool_size}: {self.dataset.NAME} has {self.n_tasks} tasks that need a component "
                f"each, and at most {self.query_dim} keys are orthogonal in the query's dimensions"
            )
        if args.prompt_len % 2:
            raise UserError(f"--prompt_len {args.prompt_len}: half of the rows are keys, so give an even number")
        self.prompts, self.keys, self.attentions = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def new_task(self, split):
        rows = self.args.prompt_len * self.width
        for kept, size in ((self.prompts, rows), (self.keys, self.query_dim), (self.attentions, self.query_dim)):
            old = [part.detach().cpu() for part in kept.requires_grad_(False)]
            fresh = torch.randn(min(LAYERS, self.n_layers), self.per_task, size)
            basis = torch.linalg.qr(torch.cat([*old, fresh], dim=1).mT).Q.mT  # Gram-Schmidt, in this order
            kept.append(nn.Parameter(basis[:, -self.per_task :].contiguous().to(self.device)))

    def components(self):
        """Prompts (layers, M, len * W), keys and attentions (layers, M, D) so far."""
        return [torch.cat(list(parts), dim=1) for parts in (self.prompts, self.keys, self.attentions)]

    def prefixes(self, query, prompts, keys, attentions):
        """(B, 2, P, W) by layer."""
        mixed = torch.einsum("blm,lmr->lbr", attended_cosines(query, attentions, keys), prompts)
        return dict(enumerate(mixed.unflatten(2, (2, self.args.prompt_len // 2, self.width))))

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, query=None):
        x, query = self.prepare(inputs, query)
        parts = self.components()
        loss = self.head_loss(self.body(x, prefixes=self.prefixes(query, *parts)), labels)
        if self.args.ortho_mu:
            loss = loss + self.args.ortho_mu * sum(penalty(rows) for rows in parts)
        return self.step(loss)

    @torch.no_grad()
    def answers(self, x, query):
        found = self.prefixes(query, *self.components()) if len(self.prompts) else None
        return self.head.spread(self.head(self.body(x, prefixes=found)))


def penalty(rows):
    """Mean square of the difference between the products of rows (layers, M, D) and the identity."""
    return (rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device)).square().mean()
