"""LwF.MC: the network's own answers on new images are distilled by binary cross-entropy; no exemplars are kept.

Rebuffi et al., CVPR 2017, arXiv 1611.07725, where it is iCaRL without exemplars and with the network's own answers.

    targets   old classes: sigmoid of the previous network's logits; new classes: one-hot        -> `targets`
    loss      binary cross-entropy, mean over batch and seen classes, + wd_reg * |theta|^2       -> `observe`
    classify  the largest logit                                                                  -> `forward`

Choices: --wd_reg is 0 by default, for weight decay is also a framework flag; iCaRL's is 1e-5.

No table has a row of it; on the picture world:
    python main.py --model lwf-mc --dataset seq-tiny --backbone clip-visual --lr 0.1 --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import copy

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.flags import non_negative


class LwfMc(ContinualModel):
    NAME = "lwf-mc"
    COMPATIBILITY = ["class-il", "task-il"]
    DECAY = "wd_reg"  # flag with the weight of the squared parameters

    @staticmethod
    def get_parser(parser):
        parser.add_argument(
            "--wd_reg", type=non_negative, default=0.0, help="weight of the squared parameters in the loss"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.old_net = None

    def targets(self, inputs, labels):
        targets = F.one_hot(labels, self.n_seen_classes).float()
        if self.old_net is not None:
            with torch.no_grad():
                targets[:, : self.n_past_classes] = self.old_net(inputs)[:, : self.n_past_classes].sigmoid()
        return targets

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)[:, : self.n_seen_classes]
        loss = F.binary_cross_entropy_with_logits(outputs, self.targets(inputs, labels))
        if decay := getattr(self.args, self.DECAY):
            loss = loss + decay * sum(p.square().sum() for p in self.net.parameters() if p.requires_grad)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def end_task(self, dataset):
        self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)
