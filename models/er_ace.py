"""ER-ACE: new samples compete among their own classes only, replayed ones among all.

Caccia et al., ICLR 2022, arXiv 2104.05025. With P the classes of the batch and U those never seen before it,

    loss = CE(h(x), y; logits of P and U) + CE(h(x'), y'; all logits),   (x', y') from a reservoir.

An old class that is not in the batch gets no gradient from the stream, so its features are not pushed away.

Choices: U are classes that no batch had before, whatever their numbers. The first task has no mask and no replay
unless --task_free 1. --use_custom_classifier 1 replaces the linear classifier with a cosine classifier of scale 10.
--mammoth_compat 1 opens the mask from the highest class seen on, so that this class is never masked, as in Mammoth.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model er-ace --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from backbone.cosine import CosineLinear
from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import add_rehearsal_args, boolean
from utils.memory.buffer import Buffer

SCALE = 10.0  # of the cosine classifier


class ErAce(ContinualModel):
    NAME = "er-ace"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument(
            "--task_free", type=boolean, default=False, help="mask and replay already in the first task"
        )
        parser.add_argument(
            "--use_custom_classifier", type=boolean, default=True, help="cosine instead of linear classifier"
        )
        parser.add_argument("--mammoth_compat", type=boolean, default=False, help="never mask the highest class seen")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.use_custom_classifier:
            old = getattr(self.net, "classifier", None)
            if not hasattr(old, "in_features"):
                raise UserError(
                    "er-ace replaces a linear classifier, but this --backbone does not have one: "
                    "give --use_custom_classifier 0"
                )
            self.net.classifier = CosineLinear(old.in_features, self.num_classes, scale=SCALE, learn_scale=False).to(
                self.device
            )
            self.opt = self.get_optimizer()
        self.buffer = Buffer(args.buffer_size)
        self.register_buffer("seen", torch.zeros(self.num_classes, dtype=torch.bool, device=self.device))

    def open_classes(self, labels):
        """(C,) true for classes of the batch and those never seen."""
        present = torch.zeros_like(self.seen)
        present[labels] = True
        self.seen |= present
        if not self.args.mammoth_compat:
            return present | ~self.seen
        highest = self.num_classes - 1 - self.seen.flip(0).int().argmax()
        return present | (torch.arange(self.num_classes, device=self.device) >= highest)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits, open_classes = self.net(inputs), self.open_classes(labels)
        apart = self.current_task > 0 or self.args.task_free
        loss = self.loss(logits.masked_fill(~open_classes, -1e9) if apart else logits, labels)
        if apart and not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            loss = loss + self.loss(self.net(old), old_labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.detach()
