"""HAL: replay, and anchors on which a step should not change the answers.

Chaudhry et al., AAAI 2021, arXiv 2002.08165. With anchors e (one image for each class learned),

    tentative   theta~ = theta - lr grad L(batch and replay)
    step        along grad [ L(batch and replay) + hal_lambda mean ||h_theta(e) - h_theta~(e)||^2 ] at theta
                                                                                                -> `observe`
    phi_c       mean feature of class c, phi <- beta phi + (1 - beta) mean over a batch
    anchors     after a task, of each of its classes: ascent on
                l_theta'(e) - l_theta(e) - gamma ||f(e) - phi_c||^2,  theta' tuned on the memory for one pass
                                                                                                -> `make_anchors`

Choices: anchors start at a stored image of their class and take --anchor_steps of gradient ascent with the run's
learning rate, network in eval mode. The memory keeps the last samples of each class (a ring). Of images with texts only
the image is changed.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model hal --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
from torch.nn.functional import cross_entropy, mse_loss

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, fraction, natural, non_negative
from utils.memory.buffer import Buffer
from utils.pair import Pair
from utils.passes import normalized


class Hal(ContinualModel):
    NAME = "hal"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add = parser.add_argument
        add("--hal_lambda", type=non_negative, default=0.1, help="weight of the loss on anchors")
        add("--beta", type=fraction, default=0.5, help="decay of the mean features")
        add(
            "--gamma",
            type=non_negative,
            default=0.1,
            help="weight of an anchor's distance from its class's mean feature",
        )
        add("--anchor_steps", type=natural, default=100, help="steps of gradient ascent that make an anchor")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, sample_selection_strategy="ring", n_classes=self.num_classes)
        self.anchors = None  # (A, ...) as the network takes them, in the order of anchor_labels
        self.phi = None  # (C, D)
        self.counted = torch.zeros(self.num_classes, dtype=torch.bool)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        x, y = inputs, labels
        if not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            x, y = torch.cat((inputs, old)), torch.cat((labels, old_labels))
        outputs, features = self.net(x, returnt="both")
        loss = self.loss(outputs, y)
        loss.backward()
        if self.anchors is not None and self.args.hal_lambda:
            moved = self.answers_after_step()
            drift = self.args.hal_lambda * mse_loss(self.net(self.anchors), moved, reduction="sum") / len(moved)
            drift.backward()
            loss = loss + drift
        self.opt.step()
        self.follow(features[: len(labels)].detach().flatten(1), labels)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.detach()

    @torch.no_grad()
    def answers_after_step(self):
        """Logits of the anchors after a plain gradient step; the weights are then restored."""
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        before = [p.clone() for p in parameters]
        torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-self.opt.param_groups[0]["lr"])
        moved = self.net(self.anchors)
        torch._foreach_copy_(parameters, before)
        return moved

    def follow(self, features, labels):
        """Move the mean feature of each class of the batch."""
        if self.phi is None:
            self.phi = features.new_zeros(self.num_classes, features.shape[1])
        sums = torch.zeros_like(self.phi).index_add_(0, labels, features)
        counts = torch.bincount(labels, minlength=self.num_classes)
        there = counts > 0
        means = sums[there] / counts[there, None]
        beta = torch.where(self.counted.to(labels.device)[there], self.args.beta, 0.0)[
            :, None
        ]  # the first mean is taken as it is
        self.phi[there] = beta * self.phi[there] + (1 - beta) * means
        self.counted |= there.cpu()

    def end_task(self, dataset):
        if self.args.inference_only or self.buffer.is_empty():
            return
        examples, labels = self.buffer.get_all_data(device=self.device)
        first, end = dataset.get_offsets(self.current_task)
        rows = [torch.nonzero(labels == c).flatten()[-1:] for c in range(first, end)]
        rows = torch.cat(rows)
        if len(rows):
            new = self.make_anchors(normalized(examples[rows], self.normalization_transform), labels[rows])
            self.anchors = (
                new if self.anchors is None or self.SETTING == "domain-il" else torch.cat([self.anchors, new])
            )

    def make_anchors(self, start, labels):
        """Images of the given classes that a network tuned on the memory forgets most."""
        tuned = self.tuned_on_memory()
        self.net.eval()
        image = (start.image if isinstance(start, Pair) else start).clone()
        for _ in range(self.args.anchor_steps):
            image.requires_grad_()
            e = Pair(image, start.text) if isinstance(start, Pair) else image
            outputs, features = self.net(e, returnt="both")
            gain = cross_entropy(tuned(e), labels, reduction="sum") - cross_entropy(outputs, labels, reduction="sum")
            gain = gain - self.args.gamma * (features.flatten(1) - self.phi[labels]).square().sum()
            image = (image + self.opt.param_groups[0]["lr"] * torch.autograd.grad(gain, image)[0]).detach()
        self.net.train()
        return Pair(image, start.text) if isinstance(start, Pair) else image

    def tuned_on_memory(self):
        """A copy of the network after one pass over the memory."""
        net = copy.deepcopy(self.net)
        opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=self.opt.param_groups[0]["lr"])
        for rows in torch.randperm(len(self.buffer)).split(self.args.batch_size):
            inputs, labels = self.buffer.get_data_by_index(rows, self.transform, self.device)
            opt.zero_grad()
            cross_entropy(net(inputs), labels).backward()
            opt.step()
        return net.eval().requires_grad_(False)
