"""Dark experience replay ++: replayed samples keep the logits (and, in a second draw, the label) they had.

Buzzega et al., NeurIPS 2020, arXiv 2004.07211. With z the logits stored when a sample was seen,

    loss = CE(h(x), y) + alpha * MSE(h(x'), z') + beta * CE(h(x''), y''),   (x', z') and (x'', y'') drawn independently.

Choices: --single_forward 1 sends x, x' and x'' through the network as one batch. The math is the same but for
BatchNorm, whose batch statistics are then those of stream and memory together instead of each on its own.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model derpp --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, boolean, non_negative
from utils.memory.record_buffer import add_codec_args, replay_buffer


class Derpp(ContinualModel):
    NAME = "derpp"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add_codec_args(parser)
        parser.add_argument("--alpha", type=non_negative, required=True, help="weight of the stored logits")
        parser.add_argument("--beta", type=non_negative, required=True, help="weight of the stored labels")
        parser.add_argument(
            "--single_forward", type=boolean, default=False, help="process stream and memory as one batch"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = replay_buffer(args, self.net, self.normalization_transform)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs, loss = (
            self.joint_step(inputs, labels) if self.args.single_forward else self.separate_step(inputs, labels)
        )
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels, logits=outputs.detach())
        return loss.detach()

    def draw(self):
        return self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)

    def separate_step(self, inputs, labels):
        outputs = self.net(inputs)
        loss = self.loss(outputs, labels)
        if not self.buffer.is_empty():
            replayed, _, logits = self.draw()
            loss = loss + self.args.alpha * F.mse_loss(self.net(replayed), logits)
            replayed, old_labels, _ = self.draw()
            loss = loss + self.args.beta * self.loss(self.net(replayed), old_labels)
        return outputs, loss

    def joint_step(self, inputs, labels):
        if self.buffer.is_empty():
            return self.separate_step(inputs, labels)
        (first, _, logits), (second, old_labels, _) = self.draw(), self.draw()
        sizes = [len(inputs), len(first), len(second)]
        outputs, for_logits, for_labels = self.net(torch.cat((inputs, first, second))).split(sizes)
        loss = self.loss(outputs, labels) + self.args.alpha * F.mse_loss(for_logits, logits)
        return outputs, loss + self.args.beta * self.loss(for_labels, old_labels)
