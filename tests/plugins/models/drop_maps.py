"""Feature maps of a copy of the network (returnt='full'), a helper package of its own, BatchNorm left alone."""

from copy import deepcopy

import torch

from models.fp_utils.maps import distance_of_maps
from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser
from utils.batch_norm import bn_track_stats
from utils.conf import get_device, warn_once


class DropMaps(ContinualModel):
    NAME = 'drop_maps'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.add_argument('--lambda_maps', type=float, default=1.0)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.teacher = None
        assert get_device().type == self.device.type
        warn_once('maps are compared')

    def end_task(self, dataset):
        self.teacher = deepcopy(self.net).eval()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        with bn_track_stats(self, self.current_task == 0):
            logits, maps = self.net(inputs, returnt='full')
        loss = self.loss(logits, labels)
        if self.teacher is not None:
            with torch.no_grad():
                _, old = self.teacher(inputs, returnt='full')
            loss = loss + self.args.lambda_maps * distance_of_maps(maps, old)
        loss.backward()
        self.opt.step()
        return loss.item()
