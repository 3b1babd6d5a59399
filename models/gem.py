"""GEM: the gradient step nearest to the stream's that raises no past task's loss on its memory.

Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840. With g the gradient of the stream batch and G (t, P) those of the
past tasks' memories: where G g >= 0 fails, step along g + G^T v, v = argmin ||g + G^T v|| over v >= gamma (the dual
of the projection; gamma > 0 moves the step toward the past)   -> `utils.gradients.project_cone`

Choices: the quadratic program is solved as non-negative least squares (scipy), to the same solution. A task stores
M / T random images without augmentation. --whole_memory 1 replays all of them in every step, as the paper's constraints
read; 0 draws --minibatch_size of each past task.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model gem --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.agem import random_images, share_of_tasks
from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, boolean, non_negative
from utils.gradients import get_grads, gradient, project_cone, set_grads, trained
from utils.memory.buffer import Buffer


class Gem(ContinualModel):
    NAME = "gem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = {"whole_memory": 0}  # a run in which --minibatch_size matters

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument(
            "--gamma", type=non_negative, default=0.5, help="minimum weight of a past task's gradient in a step"
        )
        parser.add_argument("--whole_memory", type=boolean, default=True, help="use all stored samples in every step")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.share = share_of_tasks(args.buffer_size, self.n_tasks)
        self.buffer = Buffer(args.buffer_size)

    def past_gradients(self, parameters):
        """G (t, P): a row for each past task."""
        tasks = self.buffer.task_labels[: len(self.buffer)]
        rows = []
        for task in range(self.current_task):
            places = torch.nonzero(tasks == task).flatten().cpu()
            if not self.args.whole_memory:
                places = places[torch.randperm(len(places))[: self.args.minibatch_size]]
            inputs, labels, _ = self.buffer.get_data_by_index(places, self.transform, self.device)
            rows.append(gradient(self.loss(self.net(inputs), labels), parameters))
        return torch.stack(rows)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        parameters = trained(self.net)
        G = self.past_gradients(parameters) if self.current_task else None
        loss = self.loss(self.net(inputs), labels)
        g = gradient(loss, parameters)
        if G is not None and bool((G @ g < 0).any()):
            g = project_cone(g, G, self.args.gamma)
        set_grads(parameters, g)
        self.opt.step()
        return loss.detach()

    def end_task(self, dataset):
        images, labels = random_images(dataset.train_loader, self.share[self.current_task])
        self.buffer.add_data(examples=images, labels=labels, task_labels=torch.full_like(labels, self.current_task))


def store_grad(params, grads, grad_dims):
    """Copy the gradients of `params` (parameters, or a method that gives them) into the vector `grads` (P,)."""
    grads.copy_(get_grads(list(params() if callable(params) else params)))


def overwrite_grad(params, newgrad, grad_dims):
    """Put the vector `newgrad` (P,) into the gradients of `params`; parameters without a gradient stay without."""
    params = list(params() if callable(params) else params)
    for p, values in zip(params, newgrad.split(list(grad_dims)), strict=True):
        if p.grad is not None:
            p.grad.copy_(values.view_as(p))
