"""A-GEM whose memory is a reservoir over the stream, so that it needs no task boundaries.

Chaudhry et al., ICLR 2019, arXiv 1812.00420, for the projection (see agem); the reservoir is that of experience replay.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model agem-r --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.agem import AGem
from utils.flags import add_rehearsal_args
from utils.memory.buffer import Buffer


class AGemR(AGem):
    NAME = "agem_r"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super(AGem, self).__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss = super().observe(inputs, labels, not_aug_inputs)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss

    def end_task(self, dataset):
        """Does nothing: the stream fills the memory."""
