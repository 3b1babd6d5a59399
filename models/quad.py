"""QUAD: questions of old tasks are asked about new images, and the old network's answers are kept; no image is stored.

Marouf et al., ICCV 2025, arXiv 2502.04469. With q' a stored question about an image x of the batch, p* and A* answers
and attention maps of the network after the last task, and L = quad_lambda,

    loss   (1 - L) CE(h(x, q), y) + L (L_QR + L_ACD), in the first task CE alone            -> `observe`
    L_QR   mean of -sum p*(x, q') log p(x, q'), over the answers seen                      -> `soft_cross_entropy`
    L_ACD  the same of the rows of each attention map of all blocks and heads, on (x, q')  -> `kept`
    memory at most --n_questions questions of each task, without images and answers        -> `end_task`

Choices: the paper was read in notes, not in full. A stored question is drawn at random for each image (paper: one that
fits the object in the image, for which no labels are here). The network is the fusion of --backbone clip-fusion;
--attention_kept 0 is for networks without maps. On images alone there is no question to ask, so what is left is
distillation on the task's images.

No table has a row of it; on the picture world:
    python main.py --model quad --dataset clove-tiny-function --backbone clip-fusion --clip_backbone tiny \
        --optimizer adamw --lr 0.001 --n_epochs 2 --seed 1992 --picture_seed 1992
"""

import copy

import torch
from torch.nn.functional import pad

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import boolean, fraction, positive_int
from utils.pair import Pair


class Quad(ContinualModel):
    NAME = "quad"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = {"attention_kept": 0, "n_questions": 3}
    NOT_TRIED = {
        "attention_kept": "the toy network has no attention; tests/test_quad.py",
        "n_questions": "the toy images have no questions; tests/test_quad.py",
    }

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--quad_lambda", type=fraction, default=0.5, help="weight of what the old network says")
        add("--attention_kept", type=boolean, default=True, help="distill attention maps")
        add("--n_questions", type=positive_int, default=5000, help="questions kept of each task")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.attention_kept and not hasattr(self.net, "with_maps"):
            raise UserError(
                "quad distills attention maps, which this --backbone does not give: choose clip-fusion, or "
                "--attention_kept 0"
            )
        self.questions = torch.zeros(0, 0, dtype=torch.long)  # token ids (N, L)
        self.old_net = None

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs)[:, : self.n_seen_classes], labels)
        if self.old_net is not None and self.args.quad_lambda:
            part = self.args.quad_lambda
            loss = (1 - part) * loss + part * self.kept(self.asked(inputs))
        loss.backward()
        self.opt.step()
        return loss.detach()

    def asked(self, inputs):
        """The images with old questions, drawn at random."""
        if not isinstance(inputs, Pair) or not len(self.questions):
            return inputs
        rows = torch.randint(len(self.questions), (len(inputs),))
        return Pair(inputs.image, self.questions[rows].to(inputs.text))

    def kept(self, x):
        """L_QR + L_ACD."""
        with torch.no_grad():
            wanted, old_maps = self.look(self.old_net, x)
        logits, maps = self.look(self.net, x)
        found = soft_cross_entropy(wanted.softmax(1), logits.log_softmax(1))
        for new, old in zip(maps, old_maps, strict=True):
            found = found + soft_cross_entropy(old, new.clamp(min=1e-12).log()) / len(maps)
        return found

    def look(self, net, x):
        """Logits of the seen answers, and attention maps."""
        logits, maps = net.with_maps(x) if self.args.attention_kept else (net(x), [])
        return logits[:, : self.n_seen_classes], maps

    def end_task(self, dataset):
        self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)
        split = dataset.train_loader.dataset
        text = getattr(getattr(split.samples, "data", None), "text", None)
        if text is None or self.args.inference_only:
            return
        new = text[split.rows].unique(dim=0).cpu()
        new = new[torch.randperm(len(new))[: self.args.n_questions]]
        length = max(new.shape[1], self.questions.shape[1])
        self.questions = torch.cat([pad(part, (0, length - part.shape[1])) for part in (self.questions, new)])


def soft_cross_entropy(wanted, log_share):
    """Mean over rows of -sum over the last dimension of wanted (..., N) times log-probabilities (..., N)."""
    return -(wanted * log_share).sum(-1).mean()
