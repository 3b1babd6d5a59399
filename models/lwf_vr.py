"""LwF-VR: fine-tuning CLIP with distillation of the teacher's answers to random sentences, in place of future names.

Ding et al. 2022, arXiv 2207.09248, in the form that Zheng et al., ICCV 2023, arXiv 2303.06628 compare with: LwF on CLIP
whose names are replaced by 1,000 sentences of ten random tokens (--n_sentences, --sentence_length).

Choices: the sentences are drawn once by the seed; the teacher's features of them are used on both sides, so the text
tower gets no distillation gradient; a shorter context than CLIP's shortens them.

Arm of scripts/claims/mulki.yaml (docs/mulki.md), no row yet, one seed:
    python main.py --model lwf-vr --fitting_mode iters --n_iters 50 --batch_size 32 --lr 0.0002 --augment 0 \
        --n_sentences 200 --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992 --picture_seed 1992
"""

from models.utils.clip_distillation import HeldTuning, add_distillation_args, random_sentences, two_way_divergence
from models.utils.clip_tuning import add_tuning_args
from utils.flags import positive_int


class LwfVr(HeldTuning):
    NAME = "lwf-vr"
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1, "n_sentences": 6}

    @staticmethod
    def get_parser(parser):
        add = add_distillation_args(add_tuning_args(parser), teacher="previous").add_argument
        add("--n_sentences", type=positive_int, default=1000, help="random sentences")
        add("--sentence_length", type=positive_int, default=10, help="tokens per sentence")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.texts = None  # the teacher's features of the sentences, within a task

    def begin_task(self, dataset):
        super().begin_task(dataset)
        a = self.args
        self.texts = self.taught_texts(
            random_sentences(self.net, a.n_sentences, a.sentence_length, a.seed, "sentences")
        )

    def penalty(self, pixels, images, names, labels):
        taught, T = self.taught(pixels), self.args.temperature
        return self.args.kd_weight * two_way_divergence(images, self.texts, taught, self.texts, self.scale, T)

    def end_task(self, dataset):
        super().end_task(dataset)
        self.texts = None
