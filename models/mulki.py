"""MulKI: CLIP fine-tuned domain by domain with distillation from two teachers through prototypes; no reference data.

Zhang et al., IEEE TIP 2026, arXiv 2411.06764. Its abstract names four stages; the full text was not available, so every
formula below is a reconstruction, marked in "Choices", and each choice is a flag.

    Eliciting Ideas        class prototypes of the teachers align the two towers             -> `elicit`
    Adding New Ideas       five relations between images, texts and prototypes are distilled -> `relate`
    Distinguishing Ideas   the teachers are weighted for each image                          -> `distinguish`
    Making Connections     mean of weights within a task, interpolation between tasks        -> `connect`
    loss = CE(s x U^T, y) + lambda_E elicit + lambda_A relate [+ l2 |theta - theta_(t-1)|^2]

Teachers: the pre-trained CLIP and the model of the previous task; in the first task they are the same and count as one.
Choices (all of them ours):
- Prototypes are the teachers' (--elicit teacher): no moving average, hence no noise. `student` keeps moving means of
  the student's images, `soft` matches the class-by-text matrix without labels.
- Relations `it`, `ti` weigh 1 and the rest 1/2 (--rel it=1,vv=.5); the student's own texts are live in them
  (--rel_text), visual prototypes are the teachers' (--rel_visual); T = 2.
- An image's teachers share softmax(-cross-entropy) (--teacher_weight label): the labels are the task's own; --w_min
  keeps both teachers active. A row per class takes the mean over the images of its class.
- A class of the task without labeled images has no prototype: it is left out of eliciting, `vv` and `tv`, and its rows
  of `ti` and `tt` have weight 0.
- --kd_gate multiplies weights by the better teacher's probability of the true class; a class row takes the mean of
  gated weights, prototypes are blended by ungated ones. Without it an unknown domain is learned less.
- Snapshots every --avg_freq steps without the start (0: no mean); --inter_alpha .8; the anchor is the previous model.
- Beyond the abstract, off by default: --text_bank seen adds relations of the images to sampled names of past tasks
  (names only; --bank_teacher previous has them from the model that learned these tasks, and not also from the original
  CLIP), --first_hold weakens distillation in the first task, --rel_equal gives all relations the size of `it`.
- --distill_data reference keeps `it` and `ti` on data outside all tasks, for comparison, without gate or label rule.
- --cache_teacher encodes each image once per teacher, as test images are prepared; exact with --augment 0.

Row of docs/mulki.md, by scripts/claims/mulki.yaml:
    python main.py --model mulki --n_iters 50 --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992
"""

import torch
from torch.nn.functional import cross_entropy, normalize

from backbone.clip_encoder import ClipImageEncoder
from models.utils.clip_tuning import ClipTuning, add_averaging_args, add_peft_args, add_tuning_args
from models.utils.reference import ReadsReference, reference_data
from models.utils.teachers import Teachers
from utils.class_means import class_means
from utils.errors import UserError
from utils.features import FeatureStore
from utils.flags import boolean, fraction, natural, non_negative, number, path, positive, positive_int
from utils.randomness import generator
from utils.relations import (
    IMAGE_ROWS,
    blend,
    divergence,
    drop_diagonal,
    keep_floor,
    relation,
    relation_weights,
    teacher_weights,
    trust,
)
from utils.settings import option
from utils.weights import interpolate, squared_distance

MOMENTUM = 0.9  # of moving prototypes of the student
PICTURES = 256  # reference images encoded at once


def add_relation_args(add) -> None:
    """What is distilled, and how strongly."""
    add("--lambda_E", type=non_negative, default=0.5, help="weight of the alignment with prototypes")
    add("--lambda_A", type=non_negative, default=1.0, help="weight of the relations")
    aligned = ["teacher", "student", "soft", "off"]
    add("--elicit", choices=aligned, default="teacher", help="prototypes the towers are aligned with")
    add("--proto_max_per_class", type=natural, default=100, help="images per class prototype, 0 for all")
    add(
        "--rel",
        type=relation_weights,
        default="it,ti,vv,tt,tv",
        help="relations to keep (name or name=weight), or none",
    )
    add("--rel_text", choices=["student", "teacher"], default="student", help="student's texts in it, ti")
    add("--rel_visual", choices=["teacher", "student"], default="teacher", help="student's prototypes in vv, tv")
    add("--tt_self", type=boolean, default=False, help="tt compares the student's texts with each other")
    add("--rel_equal", type=boolean, default=False, help="scale every relation to the size of it")
    add("--temperature", type=positive, default=2.0, help="temperature of the relations")
    add("--first_hold", type=fraction, default=1.0, help="fraction of lambda_A in the first task")
    add("--text_bank", choices=["current", "seen"], default="current", help="seen: also names of past tasks")
    add("--bank_size", type=positive_int, default=24, help="past names, or reference texts, per step")
    add("--bank_weight", type=non_negative, default=1.0, help="weight of the past names' relations")
    add("--bank_teacher", choices=["both", "previous"], default="both", help="teachers of the past names")
    data = ["task", "reference"]
    add("--distill_data", choices=data, default="task", help="images and texts of it and ti")
    add(
        "--reference",
        type=path,
        default="tiny",
        help="reference data: a folder with images and captions.txt, tiny, or synthetic",
    )
    add("--n_reference", type=positive_int, default=1000, help="maximum number of reference images, and of texts")


def add_teacher_args(add) -> None:
    """The teachers, their weights, and how tasks are connected."""
    add("--teachers", choices=["both", "pretrained", "previous"], default="both", help="who teaches")
    rules = ["label", "entropy", "proto", "snd", "const"]
    add("--teacher_weight", choices=rules, default="label", help="rule for weighting the teachers")
    add("--tau_w", type=positive, default=1.0, help="temperature of the teacher weights")
    add("--w_min", type=number(float, 0, 0.5), default=0.1, help="minimum weight of a teacher")
    add("--snd_scale", type=positive, default=6.0, help="slope of the snd rule")
    add("--snd_threshold", type=non_negative, default=0.2, help="feature distance of equal weights")
    add("--kd_gate", type=non_negative, default=1.0, help="power of the better teacher's probability, 0 for no gate")
    add("--teacher_dtype", choices=["fp32", "fp16", "bf16"], default="fp32", help="precision of the teachers")
    add("--cache_teacher", type=boolean, default=False, help="cache the teachers' features of the task's images")
    add("--inter_alpha", type=fraction, default=0.8, help="merge weight of the new parameters, 1 for no merge")
    anchors = ["previous", "pretrained", "both"]
    add("--inter_anchor", choices=anchors, default="previous", help="what the new weights are merged with")
    add("--l2", type=non_negative, default=0.0, help="weight of the squared distance from the task's start")


class MulKI(ReadsReference, ClipTuning):
    NAME = "mulki"
    TOY_ARGS = {
        "lr": 0.001,
        "n_epochs": 1,
        "avg_freq": 2,
        "proto_max_per_class": 4,
        "text_bank": "seen",
        "bank_size": 3,
    }
    NOT_TRIED = dict.fromkeys(
        "snd_scale snd_threshold lora_rank lora_scale cache_teacher distill_data reference n_reference".split(),
        "acts only with another flag's value, or is exact where nothing is augmented; tests/test_mulki.py",
    )

    @staticmethod
    def get_parser(parser):
        add_peft_args(add_averaging_args(add_tuning_args(parser)))
        add_relation_args(parser.add_argument)
        add_teacher_args(parser.add_argument)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.pretrained = self.frozen_copy(args.teacher_dtype) if args.teachers != "previous" else None
        self.previous = None  # the model of the previous task, within a task
        self.teachers = Teachers()  # their features of the task
        self.origin = self.copied_weights("cpu") if args.inter_anchor != "previous" and args.inter_alpha < 1 else None
        self.start = None  # weights at the start of a task
        self.pictures = self.sentences = None  # reference data: bytes (N, 3, R, R) and token ids (K, L)
        if args.distill_data == "reference":
            if args.teacher_weight in {"label", "proto"}:
                text = f"--teacher_weight {args.teacher_weight} needs labels, which reference data does not have"
                raise UserError(f"{text}; give const, entropy or snd with --distill_data reference")
            if args.rel and not {"it", "ti"} & set(args.rel):
                text = f"--rel {','.join(args.rel)}: reference data has texts but no prototypes"
                raise UserError(f"{text}; name it or ti with --distill_data reference")
            self.pictures, self.sentences = reference_data(
                args.reference, self.net, args.n_reference, option(args, "seed", 0)
            )

    def checkpoint_skip(self):
        return super().checkpoint_skip() | {"pretrained", "pictures", "sentences"}

    def begin_task(self, dataset):
        if self.args.lambda_A or self.args.lambda_E:
            self.hold_teachers(dataset.train_loader.dataset)
        super().begin_task(dataset)
        anchored = self.args.l2 or (self.args.inter_alpha < 1 and self.args.inter_anchor != "pretrained")
        self.start = self.weights_at_start() if anchored else None

    def weights_at_start(self):
        """Those of a task, by name: the previous model's own tensors if it is still unchanged, else copies."""
        if self.previous is None or self.args.teacher_dtype != "fp32":
            return self.copied_weights(None if self.args.l2 else "cpu")
        held = dict(self.previous.named_parameters())
        return {name: held[name] for name in self.trained_weights()}

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, position=None):
        return self.step(inputs, labels, position=position)

    def penalty(self, pixels, images, names, labels, position=None):
        n, first = self.n_classes_current_task, self.n_past_classes - self.label_range()[0]
        texts, labels, total = names[first : first + n], labels - self.n_past_classes, 0.0
        if self.args.l2:
            total = total + self.args.l2 * squared_distance(self.trained_weights(), self.start)
        if self.teachers.texts is None:
            return total
        visuals = self.teachers.visuals if self.teachers.moving is None else self.follow(images, labels)
        if self.args.lambda_E and self.args.elicit != "off":
            total = total + self.args.lambda_E * self.elicit(images, texts, labels, visuals)
        strength = self.args.lambda_A * (1.0 if self.current_task else self.args.first_hold)
        if not strength:
            return total
        if self.pictures is not None:
            total = total + strength * self.relate_to_reference(len(images))
        if self.pictures is None or self.teachers.bank is not None:
            taught = self.teach(pixels, position)
            total = total + strength * self.relate_to_bank(images, taught)
        if self.pictures is None:
            _, gated = self.distinguish(taught, labels)
            total = total + strength * self.relate(images, texts, taught, gated, visuals)
        return total

    def end_task(self, dataset):
        super().end_task(dataset)
        self.connect()
        self.previous, self.teachers = None, Teachers()

    # teachers

    @torch.no_grad()
    def hold_teachers(self, split):
        """Texts, visual prototypes and class weights of the teachers, from the task's own images and names."""
        nets = [] if self.pretrained is None else [self.pretrained]
        if self.args.teachers == "previous" or (self.args.teachers == "both" and self.current_task):
            self.previous = self.frozen_copy(self.args.teacher_dtype)
            nets.append(self.previous)
        first, last = self.n_past_classes, self.n_seen_classes
        labelled = torch.nonzero(split.targets >= 0).flatten()
        if not len(labelled):
            return  # nothing to distill on, and there will be no step
        chosen = labelled[self.prototype_rows(split.targets[labelled])]
        asked = torch.arange(len(split)) if self.args.cache_teacher else chosen
        with self.mixed():
            texts = torch.stack([self.name_rows(net, first, last) for net in nets])
            rows = torch.stack([self.encode_rows(net, split, asked) for net in nets])  # (M, N, D)
        seen = rows[:, chosen.to(rows.device)] if self.args.cache_teacher else rows
        labels = split.targets[chosen].to(self.device) - first
        visuals = normalize(class_means(seen.float(), labels, last - first), dim=-1)
        self.teachers = t = Teachers(texts, visuals, labels.unique())
        t.class_weights, t.gated_class_weights = (
            class_means(w, labels, last - first) for w in self.distinguish(seen.float(), labels)
        )
        t.aligned_texts, t.aligned_visuals = (blend(unit, t.class_weights) for unit in (texts, visuals))
        if self.args.elicit == "student" or self.args.rel_visual == "student":
            t.moving = visuals[-1].clone()
        if self.args.cache_teacher:
            t.taught, self.previous = rows, None
            split.add_extra_return_field("position", torch.arange(len(split)))
        with self.mixed():
            if self.args.text_bank == "seen" and first:
                t.bank = torch.stack([self.name_rows(net, 0, first) for net in nets])
            if self.pictures is not None:
                t.sentences = torch.stack([self.text_rows(net, self.sentences) for net in nets])
                t.pictures = torch.stack([self.picture_rows(net, self.pictures) for net in nets])

    def prototype_rows(self, labels):
        """Positions of at most --proto_max_per_class images of each class, drawn by the seed."""
        drawn = torch.randperm(
            len(labels), generator=generator(option(self.args, "seed", 0), "prototypes", self.current_task)
        )
        if not self.args.proto_max_per_class:
            return drawn.sort().values
        order = drawn[labels[drawn].argsort(stable=True)]
        counts = torch.bincount(labels[order] - labels.min())
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within the class
        return order[place < self.args.proto_max_per_class].sort().values

    def encode_rows(self, net, split, places):
        """Unit features (N, D) of images of a split, prepared as test images; the pre-trained net's are cached."""
        store = self.store if net is self.pretrained else FeatureStore(None, "off", progress=self.store.progress)
        encoder = ClipImageEncoder(net)
        if option(self.args, "code_optimization", 0) >= 2:
            encoder.key += "|bf16 products"
        rows = store.rows(split.samples, split.rows[places], encoder, "teacher")
        if store is not self.store:
            self.forward_counter.images += store.forwards
        rows = normalize(rows.to(self.device), dim=1)
        return rows if self.args.teacher_dtype == "fp32" else rows.to(net.dtype)

    def picture_rows(self, net, pictures):
        """Unit features (N, D) of reference images."""
        with self.mixed():
            parts = [self.image_rows(net, net.normalize_images(p.to(self.device))) for p in pictures.split(PICTURES)]
        return torch.cat(parts)

    def mixed(self):
        """bf16 products with -O 2, also where the loss around them is in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=option(self.args, "code_optimization", 0) >= 2)

    @torch.no_grad()
    def teach(self, pixels, position):
        """Unit features (M, B, D) of the batch by each teacher."""
        if self.teachers.taught is not None:
            return self.teachers.taught[:, position].float()
        nets = [net for net in (self.pretrained, self.previous) if net is not None]
        with self.mixed():
            return torch.stack([self.image_rows(net, pixels) for net in nets])

    # Eliciting Ideas

    def elicit(self, images, texts, labels, visuals):
        """Each tower is aligned with the other's prototypes of the class."""
        s, t, known = self.scale, self.teachers, self.teachers.known
        if self.args.elicit == "teacher":
            wanted, place = torch.arange(len(known), device=known.device), torch.searchsorted(known, labels)
            by_text = cross_entropy(s * texts[known] @ t.aligned_visuals[known].T, wanted)
            return (by_text + cross_entropy(s * images @ t.aligned_texts[known].T, place)) / 2
        present = labels.unique()
        if self.args.elicit == "student":
            logits = s * texts[present] @ visuals[0][present].T
            place = torch.arange(len(present), device=texts.device)
            return (cross_entropy(logits, place) + cross_entropy(logits.T, place)) / 2
        means = normalize(class_means(images[None], labels, len(texts))[0][present], dim=1)
        wanted = s * t.aligned_visuals[present] @ t.aligned_texts[known].T
        return divergence(wanted, s * means @ texts[known].T, self.args.temperature).mean()

    def follow(self, images, labels):
        """Moving prototypes (1, n, D) of the student's images; the batch's part has gradient."""
        present, moving = labels.unique(), self.teachers.moving
        means = class_means(images[None], labels, len(moving))[0][present]
        rows = normalize(MOMENTUM * moving[present] + (1 - MOMENTUM) * means, dim=1)
        self.teachers.moving = moving.index_copy(0, present, rows.detach())
        return moving.index_copy(0, present, rows)[None]

    # Adding New Ideas

    def relate(self, images, texts, taught, gated, visuals):
        """Weighted divergence of the student's relations from each teacher's, summed over relations."""
        t, known = self.teachers, self.teachers.known
        own = t.texts if self.args.rel_text == "teacher" else texts[None]
        right = texts[None] if self.args.tt_self else t.texts
        columns = (visuals if self.args.rel_visual == "student" else t.visuals)[:, known]
        sizes = {"ti": len(images) > 1, "tt": len(texts) > 2}  # else a row has a single entry: nothing to compare
        terms = {}
        for kind in self.args.rel:
            if sizes.get(kind, True):
                rows = known if kind == "tv" else slice(None)
                wanted = relation(kind, taught, t.texts, t.visuals[:, known], t.texts[:, rows], t.texts, self.scale)
                given = relation(kind, images[None], own, columns, texts[None, rows], right, self.scale)
                weights = gated if kind in IMAGE_ROWS else t.gated_class_weights[:, rows]
                terms[kind] = (weights * divergence(wanted, given, self.args.temperature)).sum(0).mean()
        if self.args.rel_equal and "it" in terms:
            size = terms["it"].detach()
            terms = {kind: term * (size / term.detach().clamp(min=1e-6)).clamp(max=100) for kind, term in terms.items()}
        return sum(self.args.rel[kind] * term for kind, term in terms.items())

    def relate_to_bank(self, images, taught):
        """The same for images against sampled names of past tasks, and for these among each other; equal shares."""
        if self.teachers.bank is None or not self.args.bank_weight:
            return 0.0
        drawn = generator(option(self.args, "seed", 0), "bank", self.current_task, self.task_iteration)
        rows = torch.randperm(self.n_past_classes, generator=drawn)[: self.args.bank_size]
        with self.mixed():
            texts = self.text_rows(self.net, self.name_tokens[rows])[None]
        last = slice(-1, None) if self.args.bank_teacher == "previous" else slice(None)
        known, taught = self.teachers.bank[last, rows.to(self.device)], taught[last]
        T, s = self.args.temperature, self.scale
        loss = divergence(s * taught @ known.mT, s * images[None] @ texts.mT, T).mean()
        if len(rows) > 2:
            among = divergence(drop_diagonal(s * known @ known.mT), drop_diagonal(s * texts @ known.mT), T)
            loss = loss + among.mean() / 2
        return self.args.bank_weight * loss

    def relate_to_reference(self, size):
        """`it` and `ti` on a batch of reference images and texts instead of the task's; no gate without labels."""
        drawn = generator(option(self.args, "seed", 0), "reference", self.current_task, self.task_iteration)
        pictures = torch.randperm(len(self.pictures), generator=drawn)[:size]
        rows = torch.randperm(len(self.sentences), generator=drawn)[: self.args.bank_size]
        taught = self.teachers.pictures[:, pictures.to(self.device)]
        known = self.teachers.sentences[:, rows.to(self.device)]
        images = self.picture_rows(self.net, self.pictures[pictures])
        with self.mixed():
            texts = self.text_rows(self.net, self.sentences[rows])
        weights = self.shares(taught, known, known, None)
        total = 0.0
        for kind in ("it", "ti"):
            if kind in self.args.rel and min(images.shape[0], len(texts)) > 1:
                wanted = relation(kind, taught, known, known, known, known, self.scale)
                given = relation(kind, images[None], texts[None], known, known, known, self.scale)
                each = weights if kind == "it" else 1 / len(known)
                term = (each * divergence(wanted, given, self.args.temperature)).sum(0).mean()
                total = total + self.args.rel[kind] * term
        return total

    # Distinguishing Ideas

    @torch.no_grad()
    def distinguish(self, taught, labels):
        """Weights (M, B) of the teachers for each image, and the same times the gate."""
        weights = self.shares(taught, self.teachers.texts, self.teachers.visuals, labels)
        return weights, weights * trust(taught, self.teachers.texts, labels, self.scale, self.args.kd_gate)

    @torch.no_grad()
    def shares(self, taught, texts, visuals, labels):
        a, s = self.args, self.scale
        snd = (a.snd_scale, a.snd_threshold)
        weights = teacher_weights(a.teacher_weight, taught, texts, visuals, labels, s, a.tau_w, snd)
        return keep_floor(weights, a.w_min) if len(taught) > 1 else weights

    # Making Connections

    def connect(self):
        """weights <- alpha * weights (by then the mean within the task) + (1 - alpha) * anchor."""
        alpha, which = self.args.inter_alpha, self.args.inter_anchor
        if alpha < 1:
            anchor = self.start if which == "previous" else self.origin
            if which == "both":
                anchor = {name: (w.cpu() + self.origin[name]) / 2 for name, w in self.start.items()}
            interpolate(self.net, anchor, alpha)
        self.start, self.keys = None, None
