"""ZSCL: CLIP fine-tuned task by task with distillation from the original CLIP on reference images and texts.

Zheng et al., ICCV 2023, arXiv 2303.06628.

    loss = CE + kd_weight T^2 [KL over texts + KL over images](teacher || student) + l2 |theta - theta_(t-1)|^2
    the distillation is on a batch of reference images against all reference texts              -> `penalty`
    theta_t is the mean of the start and the weights every --avg_freq steps within the task     -> ClipTuning

As in the released code: the teacher is the original CLIP; its text features are used on both sides, so the text tower
gets no distillation gradient; the start and the weights after the first step are also snapshots (12 of them in 1,000
steps).

Choices: --reference names the data: a folder (the paper takes ImageNet's training images and captions of Conceptual
Captions), `tiny` (images and captions that the embedded CLIP was pre-trained on), `synthetic` (noise and random
sentences), `self` (the task's own batch and names). At most --n_reference images, and as many texts, are kept in memory
and encoded by the teacher once.

Row of docs/mulki.md, by scripts/claims/mulki.yaml, one seed:
    python main.py --model zscl --fitting_mode iters --n_iters 50 --batch_size 32 --lr 0.0002 --augment 0 \
        --reference tiny --reference_batch 32 --avg_freq 10 --l2 0 --dataset mtil-tiny --mtil_order I \
        --eval_future 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.clip_distillation import HeldTuning, add_distillation_args, two_way_divergence
from models.utils.clip_tuning import add_averaging_args, add_tuning_args
from models.utils.reference import ReadsReference, reference_data
from utils.flags import non_negative, path, positive_int
from utils.randomness import generator
from utils.weights import squared_distance

ROWS = 256  # reference images that the teacher encodes at once


class Zscl(ReadsReference, HeldTuning):
    NAME = "zscl"
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1, "avg_freq": 3, "n_reference": 8, "reference_batch": 4}

    @staticmethod
    def get_parser(parser):
        add_averaging_args(add_tuning_args(parser), include_init=True)
        add = add_distillation_args(parser, teacher="pretrained").add_argument
        add("--l2", type=non_negative, default=1.0, help="weight of the squared distance from the task's start")
        add(
            "--reference",
            type=path,
            required=True,
            help="folder with images and captions.txt, or tiny, synthetic, self",
        )
        add("--n_reference", type=positive_int, default=1000, help="maximum number of reference images, and of texts")
        add("--reference_batch", type=positive_int, default=64, help="reference images per step")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        self.KEEPS_TEACHER = args.reference == "self"  # else it encodes everything at the start of a task
        super().__init__(backbone, loss, args, transform, dataset)
        self.pictures = self.sentences = None  # bytes (N, 3, R, R) and token ids (K, L)
        if args.reference != "self":
            self.pictures, self.sentences = reference_data(args.reference, self.net, args.n_reference, args.seed)
        self.answers = self.texts = None  # the teacher's unit features of them, (N, D) and (K, D)

    def checkpoint_skip(self):
        return super().checkpoint_skip() | {"pictures", "sentences"}

    def needs_start(self):
        return self.args.l2 > 0

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if self.args.reference == "self":
            first, last = self.label_range()
            self.texts = self.taught_texts(self.name_tokens[first:last])
        elif self.current_task == 0 or self.args.teacher == "previous":
            self.ask_teacher()

    @torch.no_grad()
    def ask_teacher(self):
        """The model as it is at the start of a task is the teacher."""
        parts = [self.image_rows(self.net, self.prepared(part)) for part in self.pictures.split(ROWS)]
        self.answers, self.texts = torch.cat(parts), self.text_rows(self.net, self.sentences)

    def prepared(self, pictures):
        return self.net.normalize_images(pictures.to(self.device))

    def penalty(self, pixels, images, names, labels):
        total = 0.0
        if self.args.l2:
            total = self.args.l2 * squared_distance(self.trained_weights(), self.start)
        if not self.args.kd_weight:
            return total
        if self.pictures is None:
            taught = self.taught(pixels)
        else:
            rows = self.reference_rows()
            taught = self.answers[rows.to(self.device)]
            images = self.image_rows(self.net, self.prepared(self.pictures[rows]))
        T = self.args.temperature
        divergence = two_way_divergence(images, self.texts, taught, self.texts, self.scale, T)
        return total + self.args.kd_weight * divergence

    def reference_rows(self):
        """Reference images of this step, a function of the seed and the step alone."""
        drawn = generator(self.args.seed, "reference batch", self.current_task, self.task_iteration)
        return torch.randperm(len(self.pictures), generator=drawn)[: self.args.reference_batch]

    def end_task(self, dataset):
        super().end_task(dataset)
        if self.args.teacher == "previous" or self.pictures is None:
            self.answers = self.texts = None
