"""GDumb: keep a class-balanced memory and train the network from scratch on it alone.

Prabhu et al., ECCV 2020. The memory is greedy: a sample of any class but the largest replaces one of the largest.

Choices: the network is trained from scratch after every task, since each is evaluated (--fit_every_task 0: only after
the last one, as Mammoth does; scores before that are those of an untrained network). It starts from the weights that
the run began with. The learning rate falls along cosines from --maxlr to --minlr, over 1, 2, 4, ... epochs. CutMix is
applied to every batch (--cutmix_alpha 0: none); images with a text are not mixed, since texts cannot be cut.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model gdumb --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.flags import add_memory_args, boolean, non_negative, positive, positive_int
from utils.memory.buffer import Buffer
from utils.mixing import cutmix
from utils.pair import Pair
from utils.settings import option


class GDumb(ContinualModel):
    NAME = "gdumb"
    COMPATIBILITY = ["class-il", "task-il"]
    TOY_ARGS = {"fitting_epochs": 3}
    IDLE_FLAGS = {"lr": "maxlr", "lr_scheduler": "minlr"}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(n_epochs=1)
        add_memory_args(parser)
        add = parser.add_argument
        add("--maxlr", type=positive, default=0.05, help="learning rate at the start of each cosine")
        add("--minlr", type=non_negative, default=0.0005, help="learning rate at the end of each cosine")
        add("--fitting_epochs", type=positive_int, default=256, help="epochs on the memory")
        add(
            "--cutmix_alpha",
            type=non_negative,
            default=1.0,
            help="parameter of the beta distribution of CutMix, 0 for no CutMix",
        )
        add("--fit_every_task", type=boolean, default=True, help="train after every task, not only after the last")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, sample_selection_strategy="greedy")
        self.fresh = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.fit_opt = self.schedule = None

    def get_parameters(self):
        return []  # nothing is trained on the stream

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return 0.0

    def end_task(self, dataset):
        last = self.current_task == option(self.args, "stop_after", dataset.N_TASKS - 1)
        if self.args.inference_only or self.buffer.is_empty() or not (last or self.args.fit_every_task):
            return
        if not self.work_done:
            self.net.load_state_dict(self.fresh)
            self.fit_opt = self.get_optimizer([p for p in self.net.parameters() if p.requires_grad], self.args.maxlr)
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.fit_opt, 1, 2, self.args.minlr)
        self.net.train()
        for _ in self.work("fit on memory", 1 if self.args.debug_mode else self.args.fitting_epochs):
            order = torch.randperm(len(self.buffer))
            losses = [
                self.step(*self.buffer.get_data_by_index(rows, self.transform, self.device))
                for rows in order.split(self.args.batch_size)
            ]
            self.schedule.step()
            self.work_loss = torch.stack(losses).mean()
        self.fit_opt = self.schedule = None

    def step(self, inputs, labels):
        self.fit_opt.zero_grad()
        if self.args.cutmix_alpha and not isinstance(inputs, Pair):
            inputs, other, share = cutmix(inputs, labels, self.args.cutmix_alpha)
            outputs = self.net(inputs)
            loss = share * self.loss(outputs, labels) + (1 - share) * self.loss(outputs, other)
        else:
            loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.fit_opt.step()
        return loss.detach()
