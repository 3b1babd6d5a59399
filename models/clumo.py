"""CluMo: prompts picked by a visual and a textual k-means key, prepended to a fused image and question sequence.

Cai & Rostami, "CluMo: Cluster-based Modality Fusion Prompt for Continual Learning in Visual Question Answering",
arXiv 2408.11742. Each task has Nv visual and Nt textual keys and a grid of Nt * Nv prompts of L tokens.

    stage 1   keys = k-means centers of the task's frozen image and question features; then fixed  -> `begin_task`
    stage 2   nearest visual key i, nearest textual key j, prompt j * Nv + i                       -> `choose`
              [CLS ; general ; prompt ; image ; question] -> fusion -> answer head                 -> `states`
              loss = CE(answer) + kd_weight * distance to the previous head on its own answers     -> `observe`
    test      pool of the task with the smallest |v - c_t|^2 / s_v + |q - c'_t|^2 / s_q            -> `route`

No sample is kept. The abstract is the source; the released code is not followed where it differs (keys of the farthest
points, clusters of letters, prompts that are not in the optimizer, the true task at test time).

Choices: CLIP's two towers and a small fusion transformer replace ALBEF, so the fusion has to be trained once
(--fusion_train first: with the first task; never: with weights that were trained before; always: a copy is then kept
as teacher). --vqa_backbone vilt or blip uses a pretrained one: prompts are then inserted into ViLT's sequence, or among
the words of BLIP's question encoder. One pooled feature and one metric serve clustering and selection (--key_feature,
--key_metric). At test time the task is unknown: the pool is that of the nearest center c_t, the mean of a task's
features, in both modalities together, each in units of its spread (mean squared distance to its own center, averaged
over the tasks seen). --route_rule nearest takes the nearest of all tasks' keys instead; the more keys a task has, the
more that follows what an image shows rather than where it comes from (docs/clumo.md has both). --route oracle uses the
true task, as the released code does; the record holds the scores of both ways and route_acc. --head routed keeps the
head of each task with its pool. Prompts start uniform in ±prompt_init: the released ±1 is large compared to normalized
states. --kd_type kl compares softmaxes over the old answers at temperature 2. The decay of .02 leaves out biases and
norms, as the released code does (--decay_vectors 1: all). --answer_loss bce trains on the annotators' soft scores.
Streams of images only get a null question and one textual key.

Controls: --keys random puts keys at samples of the task. --keys cell is an oracle: a sample's own cell (group of the
image and wording of the question, of streams that have them) picks the prompt. --prompt_train frozen leaves prompts
random. --prompt_len 0 --general_prompt_len 0 trains the head alone on the frozen fusion. Where a stream has cells,
nmi_visual and nmi_text are the normalized mutual information, in percent, of the keys that test samples pick in their
own task's pool with group and wording.

Row of docs/clumo.md, by scripts/claims/clumo.yaml, one seed:
    python main.py --model clumo --dataset clove-tiny-rules --factor kind --device cpu --seed 0 --picture_seed 0
"""

import copy

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from backbone.fusion import TOY_FUSION, UNSEEN, GrowingHead
from models.utils.fused_model import FusedModel, add_fused_args
from models.utils.head_distillation import add_head_distillation_args, head_divergence
from models.utils.vlm_model import EVAL_ROWS
from utils.errors import UserError
from utils.flags import natural, positive, positive_int
from utils.kmeans import METRICS, distances, minibatch_kmeans, mutual_information
from utils.picture_grid import plot_pictures
from utils.randomness import generator
from utils.settings import option

SHOWN = 6  # images per task on the sheet


class CluMo(FusedModel):
    NAME = "clumo"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TOY_ARGS = TOY_FUSION | {
        "clip_backbone": "tiny",  # random features hardly tell the metrics apart
        "n_visual_keys": 2,
        "prompt_len": 2,
        "general_prompt_len": 1,
        "kmeans_iters": 3,
        "kmeans_batch": 8,
    }
    NOT_TRIED = {
        "n_text_keys": "streams of images alone have one question; tests/test_clumo.py",
        "route": "only evaluation knows the true task; tests/test_clumo.py compares both ways",
    }

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adamw", lr=3e-4, optim_wd=0.02, decay_vectors=False)
        add = add_fused_args(parser).add_argument
        add("--n_visual_keys", type=positive_int, default=3, help="visual keys per task")
        add(
            "--n_text_keys",
            type=positive_int,
            default=3,
            help="textual keys per task (1 without questions)",
        )
        add(
            "--keys",
            choices=["kmeans", "random", "cell"],
            default="kmeans",
            help="random: uniformly drawn samples of the task; cell: an oracle, the sample's own cell picks the prompt",
        )
        add("--prompt_len", type=natural, default=10, help="tokens per prompt; 0: no prompt, only the head")
        add("--general_prompt_len", type=natural, default=10, help="tokens of a task's general prompt")
        add("--prompt_init", type=positive, default=0.1, help="prompts are initialized uniformly in [-x, x]")
        add("--prompt_train", choices=["trained", "frozen"], default="trained", help="frozen: prompts stay random")
        add("--kmeans_iters", type=positive_int, default=50, help="k-means mini-batches in stage 1")
        add("--kmeans_batch", type=positive_int, default=32, help="points per k-means mini-batch")
        add("--key_metric", choices=METRICS, default="l2", help="distance of clustering, selection and routing")
        add_head_distillation_args(parser, weight=1.0)
        add("--answer_loss", choices=["ce", "bce"], default="ce", help="target: top answer, or soft scores of all")
        add(
            "--route",
            choices=["key", "oracle"],
            default="key",
            help="pool at test time: that of the nearest keys, or of the true task",
        )
        add("--route_rule", choices=["centre", "nearest"], default="centre", help="nearest task mean, or nearest key")
        add("--head", choices=["shared", "routed"], default="shared", help="one head, or the routed task's own")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        width, empty = self.net.fusion.width, torch.zeros(0, device=self.device)
        self.n_text_keys = args.n_text_keys if self.dataset.HAS_TEXT else 1
        self.prompts, self.general = nn.ParameterList(), nn.ParameterList()  # (Nt * Nv, L, W) and (Lg, W) of each task
        for name in ("visual_keys", "text_keys", "visual_centres", "text_centres"):  # (T, Nv, Dv), (T, Nt, Dt), N = 1
            self.register_buffer(name, empty)
        for name in ("spreads", "head_bank"):  # (T, 2), (T, A, W + 1)
            self.register_buffer(name, empty)
        self.head = GrowingHead(width, self.num_classes).to(self.device)
        self.register_buffer("teacher", None)  # weight and bias (A, W + 1) of the previous head
        self.teacher_fusion = None
        self.measured: dict[str, list[float]] = {}

    # stage 1

    def begin_task(self, dataset):
        self.train_on_cached_tokens(dataset)
        split = dataset.train_loader.dataset
        self.add_keys(*self.key_features(split.data), task := len(self.prompts))
        self.add_prompts(task)
        self.head.grow(split.targets[split.targets >= 0])
        self.set_fusion_training(first=task == 0)
        self.opt = self.get_optimizer()

    def add_keys(self, visual, textual, task):
        """Keys of a task from its features (N, Dv) and (N, Dt), and how far features are from them."""
        args, spread = self.args, []
        for name, x, k in (("visual", visual, args.n_visual_keys), ("text", textual, self.n_text_keys)):
            rng = generator(args.seed, "clumo keys", name, task)
            if args.keys == "random":
                keys = x[torch.randperm(len(x), generator=rng)[torch.arange(k) % len(x)].to(x.device)]
            else:
                keys = minibatch_kmeans(x, k, rng, args.kmeans_iters, args.kmeans_batch, args.key_metric)
            setattr(self, f"{name}_keys", grown(getattr(self, f"{name}_keys"), keys[None]))
            if args.route_rule == "centre":
                keys = x.mean(0, keepdim=True)
                setattr(self, f"{name}_centres", grown(getattr(self, f"{name}_centres"), keys[None]))
            spread.append(distances(x, keys, args.key_metric).amin(1).mean())
        self.spreads = grown(self.spreads, torch.stack(spread)[None])

    def add_prompts(self, task):
        """The task's grid of prompts and its general prompt; those of older tasks are fixed from now on."""
        args, width = self.args, self.net.fusion.width
        for old in (*self.prompts, *self.general):
            old.requires_grad_(False)
        shape = (self.n_text_keys * args.n_visual_keys, args.prompt_len, width)
        learns = args.prompt_train == "trained"
        for pool, size in ((self.prompts, shape), (self.general, (args.general_prompt_len, width))):
            start = args.prompt_init * (2 * torch.rand(size) - 1)
            pool.append(nn.Parameter(start.to(self.device), requires_grad=learns))

    # prompts

    def choose(self, batch, pool):
        """Index of the prompt (B,) in the grid of pools (B,): j * Nv + i of the nearest keys i and j, or the cell's."""
        i, j = self.cells_of(batch) if self.args.keys == "cell" else self.nearest_keys(batch, pool)
        return j * self.args.n_visual_keys + i

    def nearest_keys(self, batch, pool):
        """Visual key (B,) and textual key (B,) of the pools (B,) that are nearest."""
        own_visual, own_text = self.visual_keys[pool], self.text_keys[pool]  # (B, N, D)
        i = distances(batch.visual[:, None], own_visual, self.args.key_metric)[:, 0].argmin(1)
        j = distances(batch.textual[:, None], own_text, self.args.key_metric)[:, 0].argmin(1)
        return i, j

    def cells_of(self, batch):
        """Group (B,) and wording (B,) as the stream has them."""
        if batch.cells is None:
            raise UserError(
                f"--keys cell: questions of {self.dataset.NAME} have no cell that is known: use clove-tiny-rules"
            )
        i, j = batch.cells.unbind(1)
        if int(i.max()) >= self.args.n_visual_keys or int(j.max()) >= self.n_text_keys:
            raise UserError("--keys cell needs a prompt for each cell: raise --n_visual_keys and --n_text_keys")
        return i, j

    def task_distances(self, batch):
        """(B, T): distance to both centers, or the nearest keys, of each task in units of the spreads."""
        scale, total = self.spreads.mean(0).clamp(min=1e-6), 0.0  # no spread: equal questions only
        own = "centres" if self.args.route_rule == "centre" else "keys"
        for number, (name, x) in enumerate((("visual", batch.visual), ("text", batch.textual))):
            keys = getattr(self, f"{name}_{own}")  # (T, N, D)
            found = distances(x, keys.flatten(0, 1), self.args.key_metric).unflatten(1, keys.shape[:2])
            total = total + found.amin(2) / scale[number]
        return total

    def route(self, batch, by):
        """Pool (B,) of each sample: that of the nearest keys, or of the true task."""
        if by == "key":
            return self.task_distances(batch).argmin(1)
        if batch.task is None or bool((batch.task < 0).any()):
            raise UserError("--route oracle needs each sample's task, which only evaluation knows: use --route key")
        return batch.task

    def states(self, batch, pool, picked, fusion=None):
        """CLS states (B, W) of the fused sequence with general prompts and picked prompts of the pools (B,)."""
        prompts = torch.stack(list(self.prompts))[pool, picked]  # (B, L, W)
        if self.args.general_prompt_len:
            prompts = torch.cat([torch.stack(list(self.general))[pool], prompts], dim=1)
        return (fusion or self.net.fusion)(batch.image, batch.text, batch.seen, prompts)

    # stage 2

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, soft=None):
        batch = self.read(inputs)
        pool = torch.full_like(labels, len(self.prompts) - 1)
        picked = self.choose(batch, pool)
        self.opt.zero_grad()
        states = self.states(batch, pool, picked)
        logits = self.head(states)
        loss = self.answer_loss(logits, labels, soft)
        if self.teacher is not None and self.args.kd_weight:
            loss = loss + self.args.kd_weight * self.distillation(logits, states, batch, pool, picked)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def answer_loss(self, logits, labels, soft=None):
        rows = self.head.rows_of(labels)
        if self.args.answer_loss == "ce":
            return cross_entropy(logits, rows)
        wanted = one_hot(rows, logits.shape[1]).float() if soft is None else soft[:, self.head.answers]
        return binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(logits)

    def distillation(self, logits, states, batch, pool, picked):
        """Distance of the logits of old answers to the previous head's on the same sequence."""
        with torch.no_grad():
            seen = states if self.teacher_fusion is None else self.states(batch, pool, picked, self.teacher_fusion)
        return head_divergence(logits, seen, self.teacher, self.args.kd_type)

    def end_task(self, dataset):
        self.teacher = self.head.rows()
        if self.fusion_train == "always" and self.args.kd_weight:
            self.teacher_fusion = copy.deepcopy(self.net.fusion).requires_grad_(False)
        if self.args.head == "routed":
            missing = len(self.teacher) - (self.head_bank.shape[1] if len(self.head_bank) else 0)
            if len(self.head_bank):  # answers that older heads did not know
                padding = self.teacher.new_zeros(len(self.head_bank), missing, self.teacher.shape[1])
                padding[..., -1] = UNSEEN
                self.head_bank = torch.cat([self.head_bank, padding], dim=1)
            self.head_bank = grown(self.head_bank, self.teacher[None])

    # inference

    def forward(self, x):
        return self.answers(x, self.args.route)

    @torch.no_grad()
    def answers(self, x, by):
        """Logits (B, answers) of all answers seen."""
        if not len(self.prompts):  # before the first task
            return torch.full((len(x), self.num_classes), UNSEEN, device=self.device)
        starts = range(0, len(x), EVAL_ROWS)
        return torch.cat([self.answers_of(self.read(x[start : start + EVAL_ROWS]), by) for start in starts])

    def answers_of(self, batch, by):
        pool = self.route(batch, by)
        states = self.states(batch, pool, self.choose(batch, pool))
        if self.args.head == "shared" or len(self.head_bank) < len(self.prompts):  # not kept yet
            return self.head.spread(self.head(states))
        every = torch.einsum("bd,tad->tba", states, self.head_bank[..., :-1]) + self.head_bank[:, None, :, -1]
        return self.head.spread(every[pool, torch.arange(len(pool), device=pool.device)])

    # what is measured in addition to the answers

    @torch.no_grad()
    def end_eval(self, dataset, accs):
        """route_acc, and the scores with the other way to route, of each task seen."""
        ways = self.args.route, "oracle" if self.args.route == "key" else "key"
        self.measured = {"route_acc": [], f"{ways[1]}_route": []}
        for task, (loader, score) in enumerate(zip(dataset.test_loaders, accs[0], strict=True)):
            split, refs = loader.dataset, self.cached_inputs(loader)
            astray = torch.cat([self.route(self.read(part), "key") for part in refs.split(EVAL_ROWS)]).cpu() != task
            extras = {name: getattr(split, name)[astray].to(self.device) for name in split.extra_return_fields}
            labels = split.targets[astray].to(self.device)
            own, other = (  # the two ways differ only on these samples
                float(dataset.score(self.answers(refs[astray], way)[:, : self.n_seen_classes], labels, extras).sum())
                if len(labels)
                else 0.0
                for way in ways
            )
            self.measured["route_acc"].append(100 * float((~astray).float().mean()))
            self.measure_keys(refs, task)
            self.measured[f"{ways[1]}_route"].append(score + 100 * (other - own) / len(split))
        if self.run and self.run.folder and self.current_task == option(self.args, "stop_after", dataset.N_TASKS - 1):
            self.draw(dataset)

    def measure_keys(self, refs, task):
        """How far the keys that samples pick in their own task's pool follow the stream's groups and wordings."""
        batches = [self.read(part) for part in refs.split(EVAL_ROWS)]
        if batches[0].cells is None:
            return
        found = [torch.stack(self.nearest_keys(b, torch.full_like(b.task, task)), dim=1) for b in batches]
        picked, cells = torch.cat(found), torch.cat([batch.cells for batch in batches])
        for n, name in enumerate(("nmi_visual", "nmi_text")):
            self.measured.setdefault(name, []).append(100 * mutual_information(picked[:, n], cells[:, n]))

    def extra_scores(self):
        return self.measured

    def draw(self, dataset):
        """A sheet next to the record: images of each task with question, answer, and the keys of the prompt."""
        images, texts, names = [], [], dataset.get_class_names()
        for task, loader in enumerate(dataset.test_loaders):
            split, rows = loader.dataset, loader.dataset.rows[:SHOWN]
            batch = self.read(self.cached_inputs(loader)[:SHOWN])
            pool = self.route(batch, self.args.route)
            picked = self.choose(batch, pool)
            given = self.answers_of(batch, self.args.route)[:, : self.n_seen_classes].argmax(1)
            images += list(split.samples.images(rows))
            asked = getattr(split.samples, "questions", None)
            columns = (t.tolist() for t in (rows, given, split.targets[:SHOWN], pool, picked))
            for row, answer, right, t, p in zip(*columns, strict=True):
                j, i = divmod(p, self.args.n_visual_keys)
                reply = names[answer] if answer == right else f"{names[answer]} (right: {names[right]})"
                own = "" if t == task else f", not {task + 1}"
                texts.append([*([asked[row]] if asked else []), reply, f"pool {t + 1}{own}: v{i + 1} q{j + 1}"])
        title = f"{self.NAME} on {dataset.NAME}: answer; pool of a task, visual and textual key"
        plot_pictures(images, texts, SHOWN, self.run.folder / "pictures.png", title)


def grown(kept, new):
    """Rows of a new task after those of older tasks; nothing is kept yet if `kept` is empty."""
    return torch.cat([kept, new]) if len(kept) else new
