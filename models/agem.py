"""A-GEM: a gradient step that would raise the loss on a batch from memory is projected until it does not.

Chaudhry et al., ICLR 2019, arXiv 1812.00420. With g the gradient of the stream batch and r that of a memory batch,

    g.r >= 0:  step along g;    g.r < 0:  step along g - (g.r / r.r) r        -> `project`

Choices: each task stores M / T random images without augmentation (the rest of the division goes to the first tasks);
--mammoth_compat 1 offers a single batch of each task to a reservoir instead, on which Mammoth's numbers depend.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model agem --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import add_rehearsal_args, boolean
from utils.gradients import gradient, project_one, set_grads, trained
from utils.memory.buffer import Buffer
from utils.memory.exemplars import quotas


class AGem(ContinualModel):
    NAME = "agem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument(
            "--mammoth_compat", type=boolean, default=False, help="offer one batch of each task to the memory"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.share = share_of_tasks(args.buffer_size, self.n_tasks)
        self.buffer = Buffer(args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        parameters = trained(self.net)
        loss = self.loss(self.net(inputs), labels)
        g = gradient(loss, parameters)
        if not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)[:2]
            g = project(g, gradient(self.loss(self.net(old), old_labels), parameters))
        set_grads(parameters, g)
        self.opt.step()
        return loss.detach()

    def end_task(self, dataset):
        count = self.args.batch_size if self.args.mammoth_compat else self.share[self.current_task]
        images, labels = random_images(dataset.train_loader, count)
        self.buffer.add_data(examples=images, labels=labels)


def project(gxy: torch.Tensor, ger: torch.Tensor) -> torch.Tensor:
    """The gradient `gxy` (P,), moved so that it does not point against `ger`."""
    return project_one(gxy, ger)


def share_of_tasks(buffer_size: int, n_tasks: int) -> dict[int, int]:
    """Number of memory places of each task; every task needs one."""
    if buffer_size < n_tasks:
        raise UserError(
            f"--buffer_size {buffer_size} leaves some of the {n_tasks} tasks without a sample: give at least {n_tasks}"
        )
    return quotas(buffer_size, list(range(n_tasks)))


def random_images(loader, count: int):
    """`count` images of a split without augmentation, and their labels; unlabeled ones are not drawn."""
    labels = loader.dataset.targets
    known = torch.nonzero(labels >= 0).flatten()
    return loader.dataset.plain(known[torch.randperm(len(known))[:count]])
