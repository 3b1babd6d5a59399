"""X-DER on a fixed classifier, the corners of a regular simplex: classes to come have their places from the start.

Boschini et al., TPAMI 2022, arXiv 2201.00766, with the classifier of Pernici et al., ICPR 2020. The formulas are those
of `xder` without its contrastive loss, the logits those of `rpc`: z V, V (C - 1, C) the unit corners. -> `answer`

Choices: those of xder. That the margin stays and the contrastive loss goes is read from the flags that Mammoth's file
has; the paper's text was not at hand.

No table has a row of it; on the picture world:
    python main.py --model xder-rpc --dataset seq-tiny --backbone clip-visual --buffer_size 500 --lr 0.03 --alpha 0.3 \
        --beta 0.8 --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.rpc import simplex
from models.xder import XDer
from utils.errors import UserError


class XDerRpc(XDer):
    NAME = "xder-rpc"
    CONTRAST = False
    TOY_ARGS = {"constr_eta": 0.5, "constr_margin": 1.0, "dp_weight": 0.5}

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if self.num_classes < 2:
            raise UserError("xder-rpc needs at least two classes: a simplex of one has no corners")
        self.register_buffer("corners", simplex(self.num_classes).to(self.device), persistent=False)

    def answer(self, net, x):
        return net(x)[:, : self.num_classes - 1] @ self.corners
