"""fill_buffer and icarl_replay, class means of the buffer, features by net(x, returnt='features')."""

import torch

from datasets import get_dataset
from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer, fill_buffer, icarl_replay


class DropHerding(ContinualModel):
    NAME = 'drop_herding'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.set_defaults(optim_wd=1e-5)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.twin = get_dataset(args)
        self.buffer = Buffer(self.args.buffer_size, 'cpu')
        self.register_buffer('classes_so_far', torch.tensor([]).long())
        self.class_means = None

    def begin_task(self, dataset):
        icarl_replay(self, dataset)

    def observe(self, inputs, labels, not_aug_inputs, logits=None, epoch=None):
        if not hasattr(self, 'classes_so_far_buffer'):
            self.register_buffer('classes_so_far_buffer', labels.unique().to('cpu'))
        self.class_means = None
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs)[:, :self.n_seen_classes], labels)
        loss.backward()
        self.opt.step()
        return loss.item()

    def end_task(self, dataset) -> None:
        self.net.train()
        with torch.no_grad():
            fill_buffer(self.buffer, dataset, self.current_task, net=self.net, use_herding=True,
                        required_attributes=['examples', 'labels'], normalize_features=True)
        self.class_means = None

    @torch.no_grad()
    def compute_class_means(self):
        examples, labels = self.buffer.get_all_data(self.normalization_transform, device=self.device)[:2]
        means = []
        for c in range(self.n_seen_classes):
            chosen = examples[labels == c]
            means.append(self.net(chosen, returnt='features').mean(0) if len(chosen) else
                         torch.full((self.net.classifier.in_features,), 1e3, device=self.device))
        self.class_means = torch.stack(means)

    def forward(self, x):
        if self.class_means is None:
            self.compute_class_means()
        feats = self.net(x, returnt='features').view(x.shape[0], -1).unsqueeze(1)
        return -(self.class_means.unsqueeze(0) - feats).pow(2).sum(2)
