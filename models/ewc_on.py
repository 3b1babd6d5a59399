"""Online EWC: parameters are held where the Fisher information of past tasks says that they matter.

Schwarz et al., ICML 2018, arXiv 1805.06370 (online form); Kirkpatrick et al., PNAS 2017, arXiv 1612.00796.

    loss = task's loss + e_lambda * sum F (theta - theta*)^2                                     -> `observe`
    F <- gamma F + mean over images of (d log p(y|x) / d theta)^2,  theta* <- theta              -> `end_task`, `fisher`

Choices: the gradients are those of single images, exactly (utils/per_sample.py), over the task's images without
augmentation, network in eval mode, so that BatchNorm is not changed. --fisher empirical takes the true label for y, as
is common; true samples y from the network's own prediction, once for each image; mammoth weighs an image's squares by
p(y|x) and divides by whole batches, which is neither of them, but Mammoth's numbers depend on it.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model ewc-on --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.flags import non_negative
from utils.gradients import add_pull, flat, trained
from utils.passes import plain_batches
from utils.per_sample import SquaredGradients
from utils.progress import progress


class EwcOn(ContinualModel):
    NAME = "ewc_on"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--e_lambda", type=non_negative, required=True, help="weight of the penalty")
        parser.add_argument("--gamma", type=non_negative, required=True, help="decay of the old Fisher information")
        parser.add_argument(
            "--fisher",
            choices=["empirical", "true", "mammoth"],
            default="empirical",
            help="labels of the gradients: the true ones, sampled ones, or Mammoth's weighting",
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.anchor = self.information = None  # theta* and F (P,), after the first task

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        total = loss.detach()
        if self.anchor is not None:
            total = total + add_pull(trained(self.net), self.anchor, self.information, self.args.e_lambda)
        self.opt.step()
        return total

    def end_task(self, dataset):
        new = self.fisher(dataset)
        self.information = new if self.information is None else self.args.gamma * self.information + new
        self.anchor = flat(trained(self.net))

    def fisher(self, dataset):
        """Diagonal of the Fisher information (P,) of the current task."""
        training = self.net.training
        self.net.eval()
        squares, count = SquaredGradients(self.net, weighted_loss if self.args.fisher == "mammoth" else plain_loss), 0
        with progress("Fisher information", len(dataset.train_loader), self.args) as bar:
            for inputs, labels in plain_batches(self, dataset):
                known = labels >= 0
                inputs, labels = inputs[known], labels[known]
                if self.args.fisher == "true":
                    with torch.no_grad():
                        labels = torch.multinomial(self.net(inputs).softmax(1), 1).flatten()
                squares.add(inputs, labels)
                count += len(labels)
                bar.update(1)
        self.net.train(training)
        whole = len(dataset.train_loader) * dataset.train_loader.batch_size
        return squares.flat() / max(1, whole if self.args.fisher == "mammoth" else count)


def plain_loss(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none")


def weighted_loss(outputs, labels):
    """The loss whose squared gradient is p(y|x) times that of -log p(y|x)."""
    loss = F.cross_entropy(outputs, labels, reduction="none")
    return loss * (-0.5 * loss.detach()).exp()
