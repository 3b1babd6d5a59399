"""BiC: training with exemplars and distillation, then a two-parameter correction of the bias toward the new classes.

Wu et al., CVPR 2019, arXiv 1905.13260. With n old and m new classes, z the logits, z* the old network's,

    stage 1   loss = (1 - l) CE(z) + l T^2 KL(softmax(z*_old / T) || softmax(z_old / T)),  l = n / (n + m)  -> `observe`
    stage 2   z_new <- a z_new + b, with a and b fitted by cross-entropy on held-out images, as many of each class old
              or new, the network frozen                                                         -> `fit_bias`

Choices: --valset_split of each class's exemplars, at least one, are held out of stage 1, and as many images of each new
class. The factor T^2 keeps the size of the gradient at any temperature. Only the newest classes are corrected: what an
earlier correction did is passed on by distilling the corrected logits (--distill_after_bic 1). The fit sees cached
logits: --bic_epochs full-batch steps of Adam with --bic_lr. Exemplars are herded on the images of stage 1.
--mammoth_compat 1 sets l = 1 / (t + 1) for task t, which shrinks when it should grow; Mammoth's numbers depend on it.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model bic --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.flags import add_memory_args, boolean, natural, number, positive
from utils.memory.buffer import Buffer
from utils.memory.exemplars import add_rule_arg, as_unit, check_rule, fill_buffer
from utils.passes import normalized
from utils.randomness import generator


class Bic(ContinualModel):
    NAME = "bic"
    COMPATIBILITY = ["class-il", "task-il"]
    LEAST_IMAGES = 2  # one to train on and one to fit the bias

    @staticmethod
    def get_parser(parser):
        add_memory_args(parser)
        add_rule_arg(parser)
        add = parser.add_argument
        add("--bic_epochs", type=natural, default=250, help="optimization steps that fit the bias correction")
        add("--bic_lr", type=positive, default=0.01, help="learning rate of that fit")
        add("--temp", type=positive, default=2.0, help="temperature of the distillation")
        add(
            "--valset_split",
            type=number(float, 0, 1, open_low=True, open_high=True),
            default=0.1,
            help="fraction of the exemplars held out for the fit",
        )
        add("--distill_after_bic", type=boolean, default=True, help="distill the old network's corrected logits")
        add("--mammoth_compat", type=boolean, default=False, help="distillation weight 1 / (t + 1)")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_rule(args, self.num_classes)
        n_old = self.dataset.get_offsets(self.n_tasks - 1)[0]
        if args.buffer_size < 2 * n_old:
            raise UserError(
                f"--buffer_size {args.buffer_size} keeps fewer than two exemplars of each of {n_old} old classes, "
                f"one to train on and one to fit the bias: give at least {2 * n_old}"
            )
        self.buffer = Buffer(args.buffer_size, codec="uint8")
        self.old_net = None
        self.register_buffer("correction", torch.tensor([1.0, 0.0]))  # a, b
        self.corrected = (0, 0)  # the classes that they correct
        self.held_out = None  # (images in [0, 1], labels) within a task

    # stage 1

    def begin_task(self, dataset):
        if self.current_task == 0 or self.buffer.is_empty():
            return
        stored, loader = self.buffer.serialize("cpu"), dataset.train_loader
        labels, new = stored["labels"], loader.dataset.targets
        counts = torch.bincount(labels, minlength=self.n_past_classes)
        each = max(1, round(self.args.valset_split * int(counts.min())))
        draw = generator(*loader.key, "held out")
        old_rows = random_rows(labels, range(self.n_past_classes), each, draw)
        new_rows = random_rows(new, range(self.n_past_classes, self.n_seen_classes), each, draw)
        images, _ = loader.dataset.plain(new_rows)
        self.held_out = (
            torch.cat([as_unit(stored["examples"][old_rows]), images]),
            torch.cat([labels[old_rows], new[new_rows]]),
        )
        kept = others(len(labels), old_rows)
        dataset.train_loader = loader.part(others(len(new), new_rows)).with_samples(
            stored["examples"][kept], labels[kept]
        )

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)[:, : self.n_seen_classes]
        loss = self.loss(outputs, labels)
        if self.old_net is not None:
            with torch.no_grad():
                old = self.old_net(inputs)
                old = (self.correct(old) if self.args.distill_after_bic else old)[:, : self.n_past_classes]
            kept = self.args.temp**2 * soft_divergence(outputs[:, : self.n_past_classes], old, self.args.temp)
            share = (
                1 / (self.current_task + 1) if self.args.mammoth_compat else self.n_past_classes / self.n_seen_classes
            )
            loss = (1 - share) * loss + share * kept
        loss.backward()
        self.opt.step()
        return loss.detach()

    # stage 2

    def end_task(self, dataset):
        self.corrected = dataset.get_offsets(self.current_task)
        self.correction.copy_(torch.tensor([1.0, 0.0]))
        if self.held_out is not None and not self.args.inference_only:
            self.fit_bias(*self.held_out)
        self.held_out = None
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
        self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)

    def fit_bias(self, images, labels):
        with torch.no_grad():
            self.net.eval()
            logits = torch.cat(
                [
                    self.net(normalized(part, self.normalization_transform).to(self.device))
                    for part in (images[i : i + 256] for i in range(0, len(labels), 256))
                ]
            )
            self.net.train()
        self.correction.copy_(
            fit_correction(
                logits[:, : self.n_seen_classes],
                labels.to(self.device),
                self.n_past_classes,
                self.args.bic_epochs,
                self.args.bic_lr,
            )
        )

    def correct(self, logits):
        """a z + b on the newest classes that the correction was fitted for."""
        return rescale(logits, *self.corrected, self.correction)

    def forward(self, x):
        """Corrected logits; within a task those of stage 1."""
        return self.correct(self.net(x)) if self.held_out is None else self.net(x)


def rescale(logits, start: int, end: int, correction):
    return torch.cat([logits[:, :start], correction[0] * logits[:, start:end] + correction[1], logits[:, end:]], dim=1)


def fit_correction(logits, labels, n_old: int, steps: int, lr: float):
    """(a, b) that minimize the cross-entropy of the logits (N, S) with a z + b on the classes from n_old on."""
    correction = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
    opt = torch.optim.Adam([correction], lr=lr)
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(rescale(logits, n_old, logits.shape[1], correction), labels).backward()
        opt.step()
    return correction.detach()


def random_rows(labels, classes, each: int, draw) -> torch.Tensor:
    """Rows of `each` random samples of every class."""
    rows = [torch.nonzero(labels == c).flatten() for c in classes]
    return torch.cat([r[torch.randperm(len(r), generator=draw)[:each]] for r in rows])


def others(count: int, rows: torch.Tensor) -> torch.Tensor:
    keep = torch.ones(count, dtype=torch.bool)
    keep[rows] = False
    return torch.nonzero(keep).flatten()
