"""WiSE-FT task by task: CLIP is fine-tuned, then its weights are interpolated with those of an anchor.

Wortsman et al., CVPR 2022, arXiv 2109.01903; the sequential form is that of Zheng et al., ICCV 2023, arXiv 2303.06628:

    theta_t = (1 - inter_alpha) theta_(t-1) + inter_alpha theta, inter_alpha = .8                -> `end_task`

Choices: the anchor is the model before the task, as in the released code of ZSCL; --inter_anchor pretrained takes the
original CLIP, which is what WiSE-FT does for one task (there with halves).

Arm of scripts/claims/mulki.yaml (docs/mulki.md), no row yet, one seed:
    python main.py --model wise-ft --fitting_mode iters --n_iters 50 --batch_size 32 --lr 0.0002 --augment 0 \
        --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992 --picture_seed 1992
"""

from models.utils.clip_distillation import HeldTuning, add_merge_args
from models.utils.clip_tuning import add_tuning_args


class WiseFt(HeldTuning):
    NAME = "wise-ft"
    KEEPS_TEACHER = False
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1}

    @staticmethod
    def get_parser(parser):
        add_merge_args(add_tuning_args(parser), alpha=0.8)
        text = "the model before the task, or the one before all"
        parser.add_argument("--inter_anchor", choices=["previous", "pretrained"], default="previous", help=text)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.origin = self.copied_weights() if args.inter_anchor == "pretrained" and args.inter_alpha < 1 else None

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if self.origin is not None:
            self.start = self.origin
