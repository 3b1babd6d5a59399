"""ER with a bag of tricks: balanced and loss-aware memory, decaying learning rate, bias correction from the memory.

Buzzega et al., ICPR 2020, arXiv 2010.05595. Experience replay (`er`) with

    memory      a new sample replaces an old one with probability (score share + share of its class) / 2, where the
                score is the probability that the network last gave to the sample's class            -> `observe`
    rate        lr * elrd^(images seen so far), over all tasks                                      -> `decay`
    bias        after a task z_new <- a z_new + b, fitted on the memory by cross-entropy (BiC)      -> `end_task`
    replayed samples are augmented independently of how they were when stored, as everywhere here

Choices: the paper's text was not at hand, its abstract and the names of its tricks were. The score of a sample with
loss l is exp(-l), positive and largest for what is learned best. The correction is of the newest classes, by
--bic_epochs full-batch steps of Adam on logits of the memory's images without augmentation. The default of --elrd
leaves about a sixth of the rate after 2.4 million images (50 epochs of CIFAR-10), so short streams need a smaller one.

No table has a row of it; on the picture world:
    python main.py --model er-tricks --dataset seq-tiny --backbone clip-visual --buffer_size 500 --lr 0.03 \
        --elrd 0.9999 --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import cross_entropy

from models.bic import fit_correction, rescale
from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, natural, number, positive
from utils.memory.buffer import Buffer
from utils.memory.exemplars import as_unit
from utils.passes import normalized


class ErTricks(ContinualModel):
    NAME = "er-tricks"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    IDLE_FLAGS = dict.fromkeys(("lr_scheduler", "scheduler_mode", "lr_milestones", "sched_multistep_lr_gamma"), "elrd")
    TOY_ARGS = {"elrd": 0.99, "bic_lr": 0.1}

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add = parser.add_argument
        add(
            "--elrd",
            type=number(float, 0, 1, open_low=True),
            default=0.99999925,
            help="factor of the learning rate per image",
        )
        add("--bic_epochs", type=natural, default=50, help="steps that fit the bias correction, 0 for none")
        add("--bic_lr", type=positive, default=0.01, help="learning rate of that fit")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, sample_selection_strategy="labrs")
        self.register_buffer("correction", torch.tensor([1.0, 0.0], device=self.device))  # a, b
        self.corrected = (0, 0)  # the classes that they correct
        self.images_seen = 0

    def begin_task(self, dataset):
        self.correction.copy_(torch.tensor([1.0, 0.0]))

    def decay(self):
        for group in self.opt.param_groups:
            group["lr"] = self.args.lr * self.args.elrd**self.images_seen

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        new, rows = len(inputs), None
        self.decay()
        self.opt.zero_grad()
        if not self.buffer.is_empty():
            rows, old_inputs, old_labels = self.buffer.get_data(
                self.args.minibatch_size, self.transform, return_index=True, device=self.device
            )
            inputs, labels = torch.cat((inputs, old_inputs)), torch.cat((labels, old_labels))
        losses = cross_entropy(self.net(inputs), labels, reduction="none")
        losses.mean().backward()
        self.opt.step()
        scores = (-losses.detach()).exp().cpu()
        if rows is not None:
            self.buffer.sample_selection_fn.update(rows.cpu(), scores[new:])
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[:new], sample_selection_scores=scores[:new])
        self.images_seen += new
        return losses.detach().mean()

    def end_task(self, dataset):
        if not self.current_task or self.SETTING == "domain-il" or self.args.inference_only:
            return
        self.corrected = dataset.get_offsets(self.current_task)
        stored = self.buffer.serialize("cpu")
        logits = self.answers(as_unit(stored["examples"]))[:, : self.n_seen_classes]
        labels = stored["labels"].to(self.device)
        self.correction.copy_(
            fit_correction(logits, labels, self.n_past_classes, self.args.bic_epochs, self.args.bic_lr)
        )

    @torch.no_grad()
    def answers(self, images):
        """Logits (N, C) of plain images, in eval mode."""
        self.net.eval()
        inputs = normalized(images, self.normalization_transform)
        found = torch.cat([self.net(inputs[i : i + 256].to(self.device)) for i in range(0, len(inputs), 256)])
        self.net.train()
        return found

    def forward(self, x):
        """Corrected logits; within a task those of the network."""
        return rescale(self.net(x), *self.corrected, self.correction)
