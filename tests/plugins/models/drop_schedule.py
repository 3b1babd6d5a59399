"""Groups of parameters with rates of their own, a schedule by iteration, and every counter the base class has."""

import torch
from torch import nn

from models.utils.continual_model import ContinualModel
from utils import binary_to_boolean_type, none_or_float
from utils.args import ArgumentParser
from utils.schedulers import CosineSchedulerWithLinearWarmup, get_scheduler


class DropSchedule(ContinualModel):
    NAME = 'drop_schedule'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.set_defaults(scheduler_mode='iter', optim_wd=1e-4)
        parser.add_argument('--head_lr', type=none_or_float, default=0.1)
        parser.add_argument('--plain_schedule', type=binary_to_boolean_type, default=0)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        self.epochs_seen = []
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        cpt = self.cpt if isinstance(self.cpt, int) else sum(self.cpt) // len(self.cpt)
        self.weight = nn.Parameter(torch.ones(cpt * self.n_tasks), requires_grad=False)
        assert self.N_TASKS == self.n_tasks and self.num_classes == self.N_CLASSES and self.SETTING == self.dataset.SETTING
        self.iters = self.dataset.get_epochs() * 4
        assert self.dataset.get_batch_size() == self.args.batch_size and self.dataset.get_minibatch_size() > 0

    def get_parameters(self):
        head = list(self.net.classifier.parameters()) if hasattr(self.net, 'classifier') else list(self.net.head.parameters())
        ids = {id(p) for p in head}
        return [{'params': [p for p in self.net.parameters() if id(p) not in ids]},
                {'params': head, 'lr': self.args.head_lr}]

    def get_optimizer(self, params=None, lr=None):
        params = params if params is not None else self.get_parameters()
        return torch.optim.AdamW(params, lr=lr if lr is not None else self.args.lr, weight_decay=self.args.optim_wd)

    def begin_task(self, dataset):
        assert len(dataset.train_loader) > 0 and self.task_iteration == 0
        start, end = self.get_offsets(self.current_task)
        assert (start, end) == (self.n_past_classes, self.n_seen_classes)
        assert self.n_classes_current_task + self.n_past_classes + self.n_remaining_classes == self.num_classes
        if self.args.plain_schedule:
            self.custom_scheduler = get_scheduler(self, self.args)
        else:
            self.custom_scheduler = CosineSchedulerWithLinearWarmup(self.opt, num_warmup_steps=2, num_training_steps=self.iters)
        self.scheduler = self.custom_scheduler

    def begin_epoch(self, epoch, dataset):
        assert self.epoch_iteration == 0
        self.epochs_seen.append(epoch)

    def end_epoch(self, epoch, dataset):
        assert 0 < self.epoch_iteration <= len(dataset.train_loader) and self.task_iteration >= self.epoch_iteration

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        assert epoch == self.epochs_seen[-1]
        plain = self.normalization_transform(not_aug_inputs) if self.normalization_transform is not None else not_aug_inputs
        _wandb_lr = self.opt.param_groups[0]['lr']
        self.opt.zero_grad()
        logits = self.net(torch.cat([inputs, plain]))[:, :self.n_seen_classes]
        loss_ce = self.loss(logits, torch.cat([labels, labels]))
        loss_ce.backward()
        self.opt.step()
        return {'loss': loss_ce.item(), 'lr': _wandb_lr, 'step': self.task_iteration}

    def end_eval(self, dataset, accs):
        assert len(accs) == 2 and len(accs[0]) == self.current_task + 1

    def get_debug_iters(self):
        return 2
