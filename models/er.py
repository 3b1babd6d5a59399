"""Experience replay: each batch is trained on together with samples from a reservoir.

Chaudhry et al. 2019, arXiv 1902.10486.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model er --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args
from utils.memory.record_buffer import add_codec_args, replay_buffer


class Er(ContinualModel):
    NAME = "er"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add_codec_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = replay_buffer(args, self.net, self.normalization_transform)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        real = len(inputs)
        self.opt.zero_grad()
        if not self.buffer.is_empty():
            old_inputs, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            inputs, labels = torch.cat((inputs, old_inputs)), torch.cat((labels, old_labels))
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[:real])
        return loss.detach()
