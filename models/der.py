"""Dark experience replay: replayed samples keep the logits they had when they were seen.

Buzzega et al., NeurIPS 2020, arXiv 2004.07211. With z the logits stored when a sample was seen,

    loss = CE(h(x), y) + alpha * MSE(h(x'), z'),   (x', z') drawn from the memory.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model der --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, non_negative
from utils.memory.buffer import Buffer


class Der(ContinualModel):
    NAME = "der"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=non_negative, required=True, help="weight of the stored logits")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs, labels)
        if not self.buffer.is_empty():
            replayed, logits = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            loss = loss + self.args.alpha * F.mse_loss(self.net(replayed), logits)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, logits=outputs.detach())
        return loss.detach()
