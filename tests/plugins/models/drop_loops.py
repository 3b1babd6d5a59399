"""Passes over the stream's own loaders: logits of the old network for each image, then all data so far at once."""

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser


class DropLoops(ContinualModel):
    NAME = 'drop_loops'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.add_argument('--alpha', type=float, default=0.5)
        parser.add_argument('--collect', type=int, default=0)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.old_data, self.old_labels, self.test_scores = [], [], {}

    def begin_task(self, dataset):
        ds = dataset.train_loader.dataset
        assert len(ds) == len(ds.data) == len(ds.targets) and ds.transform is not None
        assert dataset.NAME != 'drop-digits' or ds.root.endswith('DRAWN')
        counts = torch.zeros(self.num_classes)
        for data in dataset.train_loader:
            counts += torch.bincount(data[1], minlength=self.num_classes)
        assert counts[:self.n_past_classes].sum() == 0 and counts.sum() == len(ds)
        test_transform = dataset.test_loaders[-1].dataset.transform
        twin = deepcopy(ds)
        twin.transform = test_transform
        if self.args.collect:
            self.old_data.append(ds.data)
            self.old_labels.append(np.asarray(ds.targets))
            ds.data = np.concatenate(self.old_data)
            ds.targets = torch.from_numpy(np.concatenate(self.old_labels))
            return
        logits = []
        self.net.eval()
        with torch.no_grad():
            for i in range(0, len(ds.data), self.args.batch_size):
                inputs = torch.stack([ds[j][2] for j in range(i, min(i + self.args.batch_size, len(ds)))])
                logits.append(self.net(inputs.to(self.device)).cpu())
            again = [self.net(x.to(self.device)).cpu() for x, *_ in DataLoader(twin, batch_size=self.args.batch_size)]
        self.net.train()
        assert torch.cat(again).shape == torch.cat(logits).shape
        setattr(dataset.train_loader.dataset, 'logits', torch.cat(logits))
        dataset.train_loader.dataset.extra_return_fields += ('logits',)

    def observe(self, inputs, labels, not_aug_inputs, logits=None, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs[:, :self.n_seen_classes], labels)
        if self.current_task > 0 and not self.args.collect:
            past = slice(0, self.n_past_classes)
            loss = loss + self.args.alpha * F.kl_div(F.log_softmax(outputs[:, past], 1), F.softmax(logits[:, past], 1))
        loss.backward()
        self.opt.step()
        return loss.item()

    def end_task(self, dataset):
        seen = set(dataset.train_loader.dataset.targets.tolist())
        assert len(seen) == (self.n_seen_classes if self.args.collect else self.n_classes_current_task)
        status = self.net.training
        self.net.eval()
        for k, test_loader in enumerate(dataset.test_loaders):
            right = 0
            for data in test_loader:
                inputs, labels = data[0].to(self.device), data[1].to(self.device)
                right += (self.net(inputs).argmax(1) == labels).sum().item()
            assert sorted(set(test_loader.dataset.targets.tolist())) == list(range(*self.get_offsets(k)))
            self.test_scores[k] = right / len(test_loader.dataset)
        self.net.train(status)
        assert len(self.test_scores) == self.current_task + 1 == dataset.current_task == dataset.c_task + 1
