"""LwF on CLIP: fine-tuning with distillation of the teacher's answers on the task's own images and class names.

Li and Hoiem, ECCV 2016, arXiv 1606.09282, in the form that Zheng et al., ICCV 2023, arXiv 2303.06628 compare with.

    loss = CE + kd_weight T^2 [KL over names + KL over the batch](teacher || student), T = 2     -> `penalty`

Choices: as in the released code of ZSCL the teacher's text features are used on both sides, so the text tower gets no
distillation gradient (--kd_text student: the student's own). Two controls of methods with more parts: --teacher
pretrained distills from the original CLIP instead of the previous model; --inter_alpha .8 merges weights after each
task.

Row of docs/mulki.md, by scripts/claims/mulki.yaml, one seed:
    python main.py --model lwf-clip --fitting_mode iters --n_iters 50 --batch_size 32 --lr 0.0002 --augment 0 \
        --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992 --picture_seed 1992
"""

from models.utils.clip_distillation import HeldTuning, add_distillation_args, add_merge_args, two_way_divergence
from models.utils.clip_tuning import add_tuning_args


class LwfClip(HeldTuning):
    NAME = "lwf-clip"
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1, "inter_alpha": 0.8}

    @staticmethod
    def get_parser(parser):
        add_merge_args(add_distillation_args(add_tuning_args(parser), teacher="previous"), alpha=1.0)
        parser.add_argument(
            "--kd_text", choices=["teacher", "student"], default="teacher", help="text features on the student's side"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.texts = None  # the teacher's features of the names, within a task

    def begin_task(self, dataset):
        super().begin_task(dataset)
        first, last = self.label_range()
        self.texts = self.taught_texts(self.name_tokens[first:last])

    def penalty(self, pixels, images, names, labels):
        own = names if self.args.kd_text == "student" else self.texts
        taught = self.taught(pixels)
        return self.args.kd_weight * two_way_divergence(
            images, own, taught, self.texts, self.scale, self.args.temperature
        )

    def end_task(self, dataset):
        super().end_task(dataset)
        self.texts = None
