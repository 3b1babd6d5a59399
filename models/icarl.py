"""iCaRL: exemplars by herding, distillation by binary cross-entropy, nearest-mean-of-exemplars classification.

Rebuffi et al., CVPR 2017, arXiv 1611.07725.

    targets   old classes: sigmoid of the previous network's logits; new classes: one-hot        -> `targets` of LwF.MC
    loss      binary cross-entropy, mean over batch and seen classes, + opt_wd * |theta|^2       -> `observe`
    exemplars greedy choice that keeps the mean feature of a class, M / C for each class         -> `end_task`
    classify  nearest class mean of unit features of the exemplars                               -> `forward`

Choices: features are those before the classifier, of images without augmentation. A class whose exemplars are not
chosen yet (evaluation inside its task) is represented by the mean of its training images.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model icarl --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
import torch.nn.functional as F

from models.lwf_mc import LwfMc
from utils.flags import add_memory_args, non_negative
from utils.memory.exemplars import add_rule_arg, check_rule, exemplar_means, fill_buffer, icarl_replay
from utils.memory.record_buffer import add_codec_args, replay_buffer


class ICarl(LwfMc):
    NAME = "icarl"
    COMPATIBILITY = ["class-il", "task-il"]
    DECAY = "opt_wd"

    @staticmethod
    def get_parser(parser):
        add_memory_args(parser)
        add_rule_arg(parser)
        add_codec_args(parser, "uint8")
        parser.add_argument(
            "--opt_wd", type=non_negative, default=1e-5, help="weight of the squared parameters in the loss"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_rule(args, self.num_classes)
        self.buffer = replay_buffer(args, self.net, self.normalization_transform, "uint8")
        self.means = None  # (C, D) unit class means; None when the network has changed since then

    def begin_task(self, dataset):
        icarl_replay(self, dataset)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.means = None
        return super().observe(inputs, labels, not_aug_inputs, epoch)

    def end_task(self, dataset):
        fill_buffer(
            self.buffer,
            dataset,
            self.current_task,
            net=self.net,
            use_herding=True,
            normalize_features=True,
            normalization=self.normalization_transform,
            memory_rule=self.args.memory_rule,
        )
        super().end_task(dataset)
        self.means = None

    def forward(self, x):
        if self.means is None:
            self.means = exemplar_means(
                self.net, self.buffer, self.dataset, self.n_seen_classes, self.normalization_transform
            )
        features = F.normalize(self.net(x, returnt="features").flatten(1), dim=1)
        # not by a matrix product, which turns an infinitely distant class into NaN
        return -torch.cdist(features, self.means, compute_mode="donot_use_mm_for_euclid_dist").square()
