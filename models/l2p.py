"""L2P: a pool of prompts, a few of which are selected by the keys nearest to the image's own feature.

Wang et al., CVPR 2022, arXiv 2112.08654.

    query    q = feature of the frozen network without prompts                             -> `prepare`
    choice   the top_k keys by cos(q, k)                                                    -> `choose`
    input    [CLS ; top_k * length prompt tokens ; the rest], answer from the prompts' mean state -> `states`
    loss     CE among the task's classes - pull_constraint_coeff * sum of cos(q, chosen keys)

Choices: each sample selects its own (the batch-wise vote of the released code makes answers depend on the other
images of a batch and is left out). On images with questions the sequence is the fused one, and the query is the
image's, as in the comparison of CluMo's authors, or with --query both the question's too. --prompt_range is the
released uniform start; compared to a small network's normalized states ±1 is large.

Row of docs/clumo.md, by scripts/claims/clumo.yaml, one seed:
    python main.py --model l2p --query both --kd_weight 1 --dataset clove-tiny-rules --factor kind --device cpu \
        --seed 0 --picture_seed 0
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from backbone.fusion import TOY_FUSION
from models.utils.prompt_model import PromptModel, add_prompt_args
from utils.errors import UserError
from utils.flags import boolean, non_negative, positive, positive_int


class L2P(PromptModel):
    NAME = "l2p"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = TOY_FUSION | {
        "n_epochs": 1,
        "pool_size_l2p": 4,
        "length": 2,
        "top_k": 2,
        "clip_grad": 0.5,
    }

    @staticmethod
    def get_parser(parser):
        add = add_prompt_args(parser).add_argument
        add("--pool_size_l2p", type=positive_int, default=10, help="prompts in the pool")
        add("--length", type=positive_int, default=5, help="tokens per prompt")
        add("--top_k", type=positive_int, default=5, help="prompts selected per sample")
        add("--prompt_key_init", choices=["uniform", "zero"], default="uniform", help="initialization of the keys")
        add("--prompt_range", type=positive, default=1.0, help="prompts are initialized uniformly in [-x, x]")
        add("--pull_constraint", type=boolean, default=True, help="pull selected keys toward the queries")
        add("--pull_constraint_coeff", type=non_negative, default=0.1, help="weight of that loss")
        add(
            "--head_type",
            choices=["prompt", "token"],
            default="prompt",
            help="input of the head: mean state of the prompts, or CLS",
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.top_k > args.pool_size_l2p:
            raise UserError(f"--top_k {args.top_k} is more than the pool's --pool_size_l2p {args.pool_size_l2p}")
        pool = args.prompt_range * (2 * torch.rand(args.pool_size_l2p, args.length, self.width) - 1)
        keys = 2 * torch.rand(args.pool_size_l2p, self.query_dim) - 1
        self.pool = nn.Parameter(pool.to(self.device))
        self.keys = nn.Parameter((keys if args.prompt_key_init == "uniform" else 0 * keys).to(self.device))

    def choose(self, query):
        """Cosines (B, k) with the nearest keys, and their indices (B, k)."""
        return (query @ normalize(self.keys, dim=1, eps=1e-6).T).topk(self.args.top_k, dim=1)

    def states(self, x, chosen):
        """What the head reads (B, W)."""
        cls, prompts = self.body(x, self.pool[chosen].flatten(1, 2), prompt_states=True)
        return prompts.mean(1) if self.args.head_type == "prompt" else cls

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, query=None):
        x, query = self.prepare(inputs, query)
        cosines, chosen = self.choose(query)
        loss = self.head_loss(self.states(x, chosen), labels)
        if self.args.pull_constraint:
            loss = loss - self.args.pull_constraint_coeff * cosines.sum(1).mean()
        return self.step(loss)

    @torch.no_grad()
    def answers(self, x, query):
        return self.head.spread(self.head(self.states(x, self.choose(query)[1])))
