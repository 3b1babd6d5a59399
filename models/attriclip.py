"""AttriCLIP: a bank of keys and prompts; an image puts the prompts of its nearest keys before every class name.

Wang et al., CVPR 2023, arXiv 2305.11488.

    choice   the --text_prompt keys with the largest cosine with the image's frozen feature, nearest first -> `choose`
    prompt   [start][their --prompt_len vectors each][name.][end]
    loss     cross-entropy of exp(logit_scale) cos(x, prompt's feature) over the task's classes
             + matching_loss_lambda mean (1 - cosine of chosen keys)
             + orthogonalize_loss_lambda mean |cosine| between features of different prompts alone     -> `loss_of`

Choices: CLIP is the one of --clip_backbone (released: ViT-L/14 always), the learning rate the one given (released:
times batch / 20). At test the features of each choice of keys are encoded once for all names, also of unseen ones.

No table has a row of it; on the picture world:
    python main.py --model attriclip --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.prompts import NamePrompts
from models.utils.feature_training import FeatureTraining
from models.utils.vlm_model import add_vlm_args
from utils.errors import UserError
from utils.flags import non_negative, positive_int


class AttriClip(FeatureTraining):
    NAME = "attriclip"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = {"num_prompt": 4, "text_prompt": 2, "prompt_len": 2, "n_epochs": 1, "lr": 0.1}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=1e-3, n_epochs=10, batch_size=32, lr_scheduler="cosine")
        add = add_vlm_args(parser, names=False).add_argument
        add("--num_prompt", type=positive_int, default=10, help="keys and prompts in the bank")
        add("--text_prompt", type=positive_int, default=3, help="prompts that an image selects")
        add("--prompt_len", type=positive_int, default=12, help="vectors per prompt")
        add("--matching_loss_lambda", type=non_negative, default=0.7, help="weight of pulling keys toward images")
        add("--orthogonalize_loss_lambda", type=non_negative, default=0.3, help="weight of keeping prompts apart")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        bank, chosen, length, width = args.num_prompt, args.text_prompt, args.prompt_len, self.net.text_width
        if chosen > bank:
            raise UserError(f"--text_prompt {chosen} is more than the bank's --num_prompt {bank}")
        self.written = NamePrompts(self.net, self.dataset.get_class_names(), chosen * length).to(self.device)
        ids = self.net.tokenize("")[0]
        ends = self.net.token_embeddings(torch.stack([ids[0], ids.max()])).detach()  # of start and end
        self.register_buffer("ends", ends.clone(), persistent=False)
        self.keys = nn.Parameter(0.02 * torch.randn(bank, self.feature_dim).to(self.device))
        self.prompts = nn.Parameter(0.02 * torch.randn(bank, length, width).to(self.device))
        self.codes = torch.zeros(0, dtype=torch.long, device=self.device)  # choices whose texts are encoded
        self.texts = torch.zeros(0, self.num_classes, self.feature_dim, device=self.device)  # unit features of these
        self.opt = self.get_optimizer()

    def get_parameters(self):
        return [self.keys, self.prompts] if hasattr(self, "prompts") else []

    def end_task(self, dataset):
        self.codes, self.texts = self.codes[:0], self.texts[:0]
        self.train_on("prompts", *self.labeled(dataset), self.loss_of)

    def choose(self, x):
        """Cosines with the nearest keys, and which these are, both (B, k), of features (B, D)."""
        return (normalize(x, dim=1) @ normalize(self.keys, dim=1).T).topk(self.args.text_prompt, dim=1)

    def encode_names(self, chosen, first, end):
        """Unit features (B, end - first, D) of names after the chosen prompts (B, k)."""
        n = end - first
        context = self.prompts[chosen].flatten(1, 2).repeat_interleave(n, 0)
        rows = self.written.encode(self.net, context, torch.arange(first, end).repeat(len(chosen)))
        return normalize(rows.float(), dim=1).view(len(chosen), n, -1)

    def prompts_alone(self):
        """Unit features (P, D) of [start][prompt][end]."""
        bank, length, _ = self.prompts.shape
        start, end = (row.expand(bank, 1, -1) for row in self.ends)
        embeds = torch.cat([start, self.prompts.to(start.dtype), end], dim=1)
        return normalize(self.net.encode_embeddings(embeds, torch.full((bank,), length + 1)).float(), dim=1)

    def scores(self, x, texts):
        """exp(logit_scale) times cosines of features (B, D) with unit texts of each (B, C, D)."""
        return self.net.logit_scale.detach() * (texts @ normalize(x, dim=1)[:, :, None])[:, :, 0]

    def loss_of(self, x, y, rows, number):
        cosines, chosen = self.choose(x)
        texts = self.encode_names(chosen, self.n_past_classes, self.n_seen_classes)
        loss = cross_entropy(self.scores(x, texts), y - self.n_past_classes)
        loss = loss + self.args.matching_loss_lambda * (1 - cosines).mean()
        if len(self.prompts) == 1:
            return loss
        alone = self.prompts_alone()
        between = (alone @ alone.T).abs().fill_diagonal_(0).sum() / (len(alone) * (len(alone) - 1))
        return loss + self.args.orthogonalize_loss_lambda * between

    def forward(self, x):
        return self.future_forward(x)[:, : self.n_seen_classes]

    @torch.no_grad()
    def future_forward(self, x):
        x = self.encode(x)
        chosen = self.choose(x).indices
        code = (chosen * self.args.num_prompt ** torch.arange(chosen.shape[1], device=x.device)).sum(1)
        distinct = code.unique()
        for new in distinct[~torch.isin(distinct, self.codes)]:
            row = (code == new).nonzero()[0]
            self.texts = torch.cat([self.texts, self.encode_names(chosen[row], 0, self.num_classes)])
            self.codes = torch.cat([self.codes, new[None]])
        place = (code[:, None] == self.codes).long().argmax(1)
        return self.scores(x, self.texts[place])
