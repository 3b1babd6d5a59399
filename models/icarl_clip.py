"""iCaRL on CLIP: fine-tuning with herded exemplars of past tasks and distillation from the original CLIP on them.

Rebuffi et al., CVPR 2017, arXiv 1611.07725, in the form that Zheng et al., ICCV 2023, arXiv 2303.06628 compare with:
class names classify instead of class means, so that future datasets can be scored; the memory holds 10,000 images
there.

    loss = CE(task) + replay_weight CE(exemplars) + kd_weight T^2 KL(teacher || student)(exemplars)     -> `penalty`
    exemplars: greedy choice that keeps the mean unit feature of a class, M / C for each class           -> `end_task`

Choices: the exemplars' softmax in the cross-entropy is over the names that the replayed batch holds, since past
datasets may have more names than a step can encode; the distillation is over all past names with the teacher's texts on
both sides; exemplars are kept as bytes and are not augmented. --teacher previous distills from the previous model
instead.

No table has a row of it; on the picture world:
    python main.py --model icarl-clip --fitting_mode iters --n_iters 100 --batch_size 32 --lr 0.0002 --augment 0 \
        --buffer_size 120 --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import cross_entropy, normalize

from backbone.clip_encoder import ClipImageEncoder
from models.utils.clip_distillation import HeldTuning, add_distillation_args
from models.utils.clip_tuning import add_tuning_args
from utils.distillation import soft_divergence
from utils.features import FeatureStore
from utils.flags import add_rehearsal_args, non_negative
from utils.memory.buffer import Buffer
from utils.memory.exemplars import add_rule_arg, check_rule, herd, quotas, total_classes
from utils.randomness import generator


class IcarlClip(HeldTuning):
    NAME = "icarl-clip"
    COMPATIBILITY = ["class-il", "task-il"]
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1}

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        add_rule_arg(parser)
        add = add_distillation_args(add_tuning_args(parser), teacher="pretrained").add_argument
        add("--replay_weight", type=non_negative, default=1.0, help="weight of the exemplars' cross-entropy")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_rule(args, self.num_classes)
        self.buffer = Buffer(args.buffer_size, codec="uint8")
        self.texts = None  # the teacher's features of past names, within a task

    def begin_task(self, dataset):
        super().begin_task(dataset)
        self.texts = self.taught_texts(self.name_tokens[: self.n_past_classes]) if self.n_past_classes else None

    def penalty(self, pixels, images, names, labels):
        if self.texts is None or self.buffer.is_empty():
            return 0.0
        drawn = generator(self.args.seed, "exemplars", self.current_task, self.task_iteration)
        places = torch.randperm(len(self.buffer), generator=drawn)[: self.args.minibatch_size]
        stored, old = self.buffer.get_data_by_index(places, device=self.device)
        pixels = self.net.normalize_images(stored)
        images = self.image_rows(self.net, pixels)
        given, wanted = (self.scale * rows @ self.texts.T for rows in (images, self.taught(pixels)))
        T = self.args.temperature
        loss = self.args.kd_weight * T**2 * soft_divergence(given, wanted, T)
        if self.args.replay_weight:
            present, place = old.unique(return_inverse=True)
            own = self.text_rows(self.net, self.name_tokens[present.cpu()])
            loss = loss + self.args.replay_weight * cross_entropy(self.scale * images @ own.T, place)
        return loss

    def end_task(self, dataset):
        super().end_task(dataset)
        self.texts = None
        self.choose_exemplars(dataset.train_loader.dataset)

    def choose_exemplars(self, split):
        """Past classes keep the first (best) of their exemplars; those of the task's classes are herded."""
        store = FeatureStore(None, "off", progress=self.store.progress)
        encoder = ClipImageEncoder(self.net)
        features = normalize(store.rows(split.samples, split.rows, encoder, "herding"), dim=1)
        self.forward_counter.images += store.forwards
        of = total_classes(self.dataset, self.args.memory_rule)
        share, images, labels = quotas(self.args.buffer_size, list(range(self.n_seen_classes)), of), [], []
        if not self.buffer.is_empty():
            stored = self.buffer.serialize()
            kept = [torch.nonzero(stored["labels"] == c).flatten()[: share[c]] for c in range(self.n_past_classes)]
            images.append(stored["examples"][torch.cat(kept)])
            labels.append(stored["labels"][torch.cat(kept)])
        for c in range(self.n_past_classes, self.n_seen_classes):
            places = torch.nonzero(split.targets == c).flatten()
            if share[c] and len(places):
                found = split.plain(places[herd(features[places], share[c])])
                images.append(getattr(found[0], "image", found[0]).mul(255).round().byte())
                labels.append(found[1])
        self.buffer.load({"examples": torch.cat(images), "labels": torch.cat(labels)})
