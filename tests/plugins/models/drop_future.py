"""Class prototypes for every class from the start: scores of classes not seen yet, and a test transform of its own."""

import torch
import torch.nn.functional as F
import torchvision.transforms as transforms

from models.utils.future_model import FutureModel
from utils.args import *


class DropFuture(FutureModel):
    NAME = 'drop-future'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il', 'general-continual']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.set_defaults(n_epochs=1, eval_future=1, optimizer='adamw')
        parser.add_argument('--temperature', type=float, default=0.1)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        names = self.dataset.get_class_names()
        templates = self.dataset.get_prompt_templates()
        prompts = [templates[0].format(n) for n in names]
        gen = torch.Generator().manual_seed(sum(map(len, prompts)))
        width = self.net.classifier.in_features
        self.register_buffer('text', F.normalize(torch.randn(len(prompts), width, generator=gen), dim=-1))
        self.clip_transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def change_transform(self, dataset) -> None:
        dataset.test_loaders[-1].dataset.transform = self.clip_transform

    def begin_task(self, dataset):
        dataset.train_loader.dataset.transform = self.clip_transform
        self.change_transform(dataset)
        self.opt = self.get_optimizer(lr=self.args.lr)

    def similarity(self, x):
        feats = F.normalize(self.net(x, returnt='features'), dim=-1)
        return feats @ self.text.T / self.args.temperature

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        logits = self.similarity(inputs)
        logits[:, :self.n_past_classes] = -float('inf')
        logits[:, self.n_seen_classes:] = -float('inf')
        loss = self.loss(logits, labels)
        loss.backward()
        self.opt.step()
        return loss.item()

    @torch.no_grad()
    def forward(self, x):
        return self.similarity(x)[:, :self.n_seen_classes]

    @torch.no_grad()
    def future_forward(self, x):
        return self.similarity(x)
