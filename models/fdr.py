"""FDR: after each step, a second one that restores the answers on stored samples.

Benjamin et al., ICLR 2019, arXiv 1805.08289. With z the logits of a stored sample at the end of its task,

    step 1   CE(h(x), y)
    step 2   alpha * mean ||softmax(h(x')) - softmax(z')||_2

Choices: after task t every task holds M / (t + 1) places (the rest of the division goes to the first tasks), filled
with random images without augmentation. --mammoth_compat 1 leaves alpha out of step 2, as Mammoth does.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model fdr --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import add_rehearsal_args, boolean, non_negative
from utils.memory.buffer import Buffer
from utils.memory.exemplars import quotas
from utils.passes import normalized


class Fdr(ContinualModel):
    NAME = "fdr"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative, required=True, help="weight of the second step")
        parser.add_argument(
            "--mammoth_compat", type=boolean, default=False, help="second step without its weight alpha"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.buffer_size < self.n_tasks:
            raise UserError(
                f"--buffer_size {args.buffer_size} leaves some of the {self.n_tasks} tasks without a sample: "
                f"give at least {self.n_tasks}"
            )
        self.buffer = Buffer(args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        if not self.buffer.is_empty():
            self.opt.zero_grad()
            old, logits, _ = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            drift = (1.0 if self.args.mammoth_compat else self.args.alpha) * drift_of_answers(self.net(old), logits)
            drift.backward()
            self.opt.step()
            loss = loss.detach() + drift.detach()
        return loss.detach()

    @torch.no_grad()
    def end_task(self, dataset):
        share = quotas(self.args.buffer_size, list(range(self.current_task + 1)))
        split = dataset.train_loader.dataset
        known = torch.nonzero(split.targets >= 0).flatten()
        images, _ = split.plain(known[torch.randperm(len(known))[: share[self.current_task]]])
        self.net.eval()
        inputs, size = normalized(images, self.normalization_transform), self.args.batch_size
        parts = [self.net(inputs[i : i + size].to(self.device)) for i in range(0, len(inputs), size)]
        new = {"examples": images, "logits": torch.cat(parts).cpu()}
        new["task_labels"] = torch.full((len(images),), self.current_task)
        self.net.train()
        if not self.buffer.is_empty():
            old = self.buffer.serialize()
            rows = [torch.nonzero(old["task_labels"] == t).flatten()[: share[t]] for t in range(self.current_task)]
            new = {name: torch.cat([old[name][torch.cat(rows)], value]) for name, value in new.items()}
        self.buffer.load(new)


def drift_of_answers(outputs: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Mean Euclidean distance of softmaxes; 0 if nothing changed, at most the square root of 2."""
    distance = (outputs.softmax(1) - before.softmax(1)).square().sum(1)
    return (distance + 1e-12).sqrt().mean()  # the root has no gradient at 0
