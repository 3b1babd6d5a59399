"""Asks for several devices if the flag says so, fits on a greedy memory at the end of a task under a progress bar."""

from copy import deepcopy

import torch
try:
    import wandb
except ImportError:
    wandb = None

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer, fill_buffer
from utils.conf import create_seeded_dataloader, get_device
from utils.distributed import CustomDP, make_dp, wait_for_master
from utils.magic import persistent_locals
from utils.status import ProgressBar, progress_bar


class DropParallel(ContinualModel):
    NAME = 'drop_parallel'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument('--fitting_epochs', type=int, default=2)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, self.device)
        if self.args.distributed == 'dp':
            self.net = make_dp(self.net)
        elif self.args.distributed == 'ddp':
            wait_for_master()
        self.old_net = None

    def inner(self):
        return self.net.module if isinstance(self.net, CustomDP) else self.net

    @persistent_locals
    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss_zero = 0
        return loss_zero

    def end_task(self, dataset):
        assert self.observe.locals['loss_zero'] == 0
        fill_buffer(self.buffer, dataset, self.current_task, required_attributes=['examples', 'labels'], net=None)
        loader = create_seeded_dataloader(self.args, torch.utils.data.TensorDataset(*self.buffer.get_all_data()),
                                          batch_size=self.args.batch_size, shuffle=True, num_workers=0)
        bar = ProgressBar(verbose=not self.args.non_verbose)
        self.old_net = deepcopy(self.inner().to(get_device())).eval()
        opt = torch.optim.SGD(self.net.parameters(), self.args.lr)
        for e in range(self.args.fitting_epochs):
            for i, (inputs, labels) in enumerate(loader):
                inputs, labels = inputs.to(self.device), labels.to(self.device)
                opt.zero_grad()
                loss = self.loss(self.net(inputs), labels)
                loss.backward()
                opt.step()
                progress_bar(i, len(loader), e, 'C', loss.item())
                bar.prog(i, len(loader), e, self.current_task, loss.item())
        if not self.args.nowand:
            wandb.log({'fitting_loss': loss.item()})
