"""A memory loaded from elsewhere (load_buffer), a model registered by decorator, CutMix, and a second network."""

import numpy as np
import torch

from backbone import get_backbone
from models import register_model
from models.utils.continual_model import ContinualModel
from utils import none_or_float
from utils.args import ArgumentParser, add_rehearsal_args
from utils.augmentations import apply_transform, cutmix_data
from utils.buffer import Buffer
from utils.conf import create_seeded_dataloader


@register_model('drop-buffer-file')
class DropBufferFile(ContinualModel):
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument('--cutmix_alpha', type=none_or_float, default=1.0)
        parser.add_argument('--fitting_epochs', type=int, default=2)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return 0

    def end_task(self, dataset):
        stored = self.buffer.serialize()
        fresh = Buffer(self.args.buffer_size)
        fresh.load_buffer = None
        fresh.add_data(**stored)
        self.load_buffer(stored)
        self.net = get_backbone(self.args).to(self.device)
        opt = torch.optim.SGD(self.net.parameters(), self.args.lr)
        items = torch.utils.data.TensorDataset(*self.buffer.get_all_data())
        for _ in range(self.args.fitting_epochs):
            for x, y in create_seeded_dataloader(self.args, items, batch_size=self.args.batch_size, shuffle=True):
                x = apply_transform(x, self.transform).to(self.device)
                x, a, b, lam = cutmix_data(x, y.to(self.device), alpha=self.args.cutmix_alpha or 0)
                opt.zero_grad()
                out = self.net(x)
                (lam * self.loss(out, a) + (1 - lam) * self.loss(out, b)).backward()
                opt.step()
