"""CGIL: a small generator per class on frozen CLIP features, and prompts aligned on generated features.

Frascaroli et al., BMVC 2024, "CLIP with Generative Latent Replay", arXiv 2407.15793.

    features    raw image features of the task, each image encoded once          -> VLMModel.image_features
    generators  one per new class, fitted on its features, kept forever          -> `fit`
    replay      samples of every class seen, new ones in each epoch             -> `replay`
    prompt      [start][V_c][g(t_c)][name.][end], t_c the hand-written feature   -> `context`
    alignment   cross-entropy of exp(logit_scale) cos(x, key_c) over seen classes -> `align_epoch`
    inference   nearest key; names not seen yet keep their hand-written key      -> `forward`, `future_forward`

Choices. As in the released code, each with a flag for ours:
- a VAE's spread is exp(logvar) (--vae_std_quirk 0: exp(logvar / 2));
- the diffusion's noise is a product of two normals (--diffusion_noise_quirk 0: one normal), a reverse step adds fresh
  noise (--diffusion_renoise_quirk 0: draws from the posterior), the cosine has no offset, the time code's slowest rate
  is 1 / steps and the last batch of an epoch may be smaller (--diffusion_constants common: .008, 1 / 10,000, full
  batches);
- with --train_only_current_prompts g learns only from the names of the task (--past_names_train_g 1: from all);
- with --cocoop g reads unit features in training and raw ones at test time (--cocoop_query unit: unit ones, as in
  training).
Controls of what replay is worth: --replay current aligns on the classes of the task alone, for as many steps;
--g_models real keeps the features instead of generators, with --joint 1 prompt tuning on all data at once in this form.
Ours, where the released code does something else or nothing: unseen keys have unit length like the others
(--future_scoring mammoth leaves them raw; the record holds both); in domain-il the generators of older domains stay as
components of a class's mixture, weighted by their number of images; k-means++ starts a mixture; the orthogonality loss,
which the released code cannot run, is mean((P P^T - I)^2) over the V_c of seen classes; --align_chunk bounds the memory
of alignment, exactly. Beyond the paper, off by default: --g_models full_gauss; --level_weight holds the mean logit of
the seen names at that of the hand-written prompts, and --future_keys generated also gives unseen names the learned
context (g(t_c), and where V_c is in use the mean V_c of the classes seen).

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model cgil --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.prompts import ContextNet, NamePrompts, chunked_backward
from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.errors import UserError
from utils.flags import LOOP_FLAGS, boolean, natural, non_negative, positive, positive_int
from utils.generative import add_generator_args, make_generator

PROMPTS = 4096  # prompts made from images that are encoded at once at test time


class CGIL(VLMModel):
    NAME = "cgil"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "") | {
        "lr": "learning_rate_alignment",
        "n_epochs": "num_epochs_alignment",
        "batch_size": "batch_size_alignment",
        "optimizer": "optim_alignment",
        "optim_wd": "optim_alignment_wd",
    }
    EVERY_CLASS = True
    LOOKS_AHEAD = True
    TOY_ARGS = {
        "g_models": "vae",
        "gr_vae_hidden_dim": 8,
        "gr_vae_latent_dim": 4,
        "gr_vae_n_iters": 3,
        "num_epochs_alignment": 1,
        "batch_size_alignment": 256,
        "align_with_ortholoss": True,
    }  # a small run
    SAMPLES = 256  # synthetic features of a class in each epoch
    NOT_TRIED = dict.fromkeys(
        (
            "g_models",
            "gr_mog_n_components",
            "gr_mog_n_iters",
            "general_context",
            "generated_context",
            "cocoop",
            "align_chunk",
            "future_scoring",
            "future_keys",
            "lambda_ortho_first_stage",
            "optim_alignment_wd",
            "diffusion_noise_quirk",
            "diffusion_renoise_quirk",
        ),
        "acts only with another flag's value, or is exact; tests/test_cgil.py",
    ) | {
        "diffusion_constants": "acts only with diffusion; tests/test_cgil.py",
        "past_names_train_g": "acts with --train_only_current_prompts; tests/test_cgil_steps.py",
        "cocoop_query": "acts with --cocoop; tests/test_cgil.py",
    }

    @staticmethod
    def get_parser(parser):
        add = add_vlm_args(parser).add_argument
        add_generator_args(add)
        classes = ["all", "current"]
        add("--replay", choices=classes, default="all", help="classes in alignment; current: none of past tasks")
        add("--learning_rate_alignment", type=positive, default=0.05, help="constant learning rate")
        add("--optim_alignment", choices=["sgd", "adam", "adamw"], default="adamw", help="optimizer of the prompts")
        add("--optim_alignment_wd", type=non_negative, default=0.0, help="weight decay, adamw only")
        add("--num_epochs_alignment", type=natural, default=30, help="epochs of newly drawn samples")
        add("--batch_size_alignment", type=positive_int, default=128, help="synthetic features per step")
        add(
            "--align_chunk",
            type=natural,
            default=0,
            help="prompts whose text activations are kept in memory at once, 0 for all",
        )
        add("--align_with_ortholoss", type=boolean, default=False, help="push the V_c of different classes apart")
        add("--lambda_ortho_first_stage", type=non_negative, default=1.0, help="weight of that loss")
        add("--train_only_current_prompts", type=boolean, default=False, help="keep V_c of older classes fixed")
        add(
            "--past_names_train_g",
            type=boolean,
            default=False,
            help="g also learns from past names; with --train_only_current_prompts 1",
        )
        add("--n_context", type=positive_int, default=1, help="learned vectors V_c (or V) per prompt")
        add("--combo_context", type=boolean, default=True, help="V_c and g(t_c) together")
        add(
            "--general_context",
            type=natural,
            default=0,
            help="any value but 0: one V of n_context vectors for all classes; with --combo_context 0",
        )
        add("--generated_context", type=boolean, default=False, help="g(t_c) alone; with --combo_context 0")
        add("--cocoop", type=boolean, default=False, help="g(image) instead of g(t_c); with --generated_context 1")
        add("--cocoop_query", choices=["raw", "unit"], default="raw", help="input of g at test time, with --cocoop 1")
        add("--future_scoring", choices=["normalised", "mammoth"], default="normalised", help="norm of unseen keys")
        add("--future_keys", choices=["handwritten", "generated"], default="handwritten", help="keys of unseen classes")
        add("--level_weight", type=non_negative, default=0.0, help="keep seen logits at the hand-written level")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.mode = prompt_mode(args)
        if args.optim_alignment_wd and args.optim_alignment != "adamw":
            raise UserError(
                "--optim_alignment_wd is only used by --optim_alignment adamw: choose that, or leave it out"
            )
        self.generator = make_generator(args).to(self.device)
        names, width = self.dataset.get_class_names(), self.net.text_width
        self.has_v, self.has_g = (
            self.mode in {"combo", "class", "general"},
            self.mode in {"combo", "generated", "cocoop"},
        )
        self.prompts = NamePrompts(self.net, names, args.n_context * self.has_v + self.has_g).to(self.device)
        template = args.prompt_template or "a photo of a {}"
        with torch.no_grad():
            raw = self.net.encode_text(self.net.tokenize([template.format(n) for n in names])).float()
        self.register_buffer("handwritten", raw, persistent=False)  # t_c (C, D), raw
        rows = (1 if self.mode == "general" else self.num_classes) if self.has_v else 0
        self.V = nn.Parameter(0.02 * torch.randn(rows, args.n_context, width, device=self.device))
        self.g = ContextNet(self.net.embed_dim, width).to(self.device) if self.has_g else None
        self.keys = None  # unit keys of the seen classes (S, D); None when a prompt has changed since then
        self.align_opt = None

    def checkpoint_skip(self):
        return super().checkpoint_skip() | {"prompts.groups_of"}

    # end of a task

    def end_task(self, dataset):
        for _ in self.work("encode and fit", 1):
            self.fit(dataset)
        if "align" not in self.work_done:
            self.align_opt = self.alignment_optimizer()
        for _ in self.work("align", 1 if self.args.debug_mode else self.args.num_epochs_alignment):
            self.work_loss = self.align_epoch()
        self.keys = None
        self.prompts.groups_of.clear()  # no memory between tasks

    def fit(self, dataset):
        from utils.progress import progress

        features, labels = self.image_features(dataset.train_loader.dataset)
        by_class = {int(c): features[labels == c] for c in labels.unique() if c >= 0}
        with progress(f"fit {self.args.g_models}", 1, self.args) as bar:

            def show(done, total, loss):
                bar.total = total
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update(done - bar.n)

            self.generator.fit(by_class, progress=show, merge=self.SETTING == "domain-il")

    def replay(self):
        """A shuffled epoch of synthetic features: (256 S, D) and labels, as many whichever classes they are of."""
        seen = self.n_seen_classes
        first = self.n_past_classes if self.args.replay == "current" else 0
        return self.generator.shuffled(seen, self.SAMPLES * seen // (seen - first), first)

    def alignment_optimizer(self):
        parameters = [self.V] * self.has_v + (list(self.g.parameters()) if self.has_g else [])
        kind, lr = self.args.optim_alignment, self.args.learning_rate_alignment
        if kind == "sgd":
            return torch.optim.SGD(parameters, lr=lr)
        if kind == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=True)
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=self.args.optim_alignment_wd, fused=True)

    def align_epoch(self):
        features, labels = self.replay()
        size = self.args.batch_size_alignment
        batches = list(zip(normalize(features, dim=1).split(size), labels.split(size), strict=True))
        losses = [self.align_step(x, y) for x, y in (batches[:4] if self.args.debug_mode else batches)]
        return torch.stack(losses).mean()

    def align_step(self, x, y):
        """One step on unit features x (B, D)."""
        self.keys = None
        self.align_opt.zero_grad()
        if self.mode == "cocoop":
            n_prompts = len(x) * self.n_seen_classes
            loss, _ = chunked_backward(
                lambda rows: self.image_keys(x, rows),
                n_prompts,
                self.args.align_chunk,
                lambda keys: cross_entropy(self.image_logits(x, keys), y),
            )
        else:
            first = (
                self.n_past_classes if self.args.train_only_current_prompts and not self.args.past_names_train_g else 0
            )
            with torch.no_grad():
                past = [self.encode_keys(slice(0, first))] if first else []
            loss, _ = chunked_backward(
                lambda rows: self.encode_keys(slice(rows.start + first, rows.stop + first)),
                self.n_seen_classes - first,
                self.args.align_chunk,
                lambda keys: self.alignment_loss(torch.cat([*past, keys]), x, y),
            )
        if self.args.align_with_ortholoss:
            ortho = self.args.lambda_ortho_first_stage * self.ortho_loss()
            ortho.backward()
            loss = loss + ortho.detach()
        self.step_keeping_others()
        return loss

    def alignment_loss(self, keys, x, y):
        logits = self.logits(x, keys)
        loss = cross_entropy(logits, y)
        if self.args.level_weight:
            written = self.logits(x, normalize(self.handwritten[: len(keys)], dim=1))
            loss = loss + self.args.level_weight * (logits.mean(1) - written.mean(1)).square().mean()
        return loss

    def step_keeping_others(self):
        """An optimizer step in which only the V_c in training move; weight decay would move the rest of the rows."""
        per_class = self.has_v and self.mode != "general"
        if not per_class:
            return self.align_opt.step()
        first = self.n_past_classes if self.args.train_only_current_prompts else 0
        before = self.V.detach().clone()
        self.align_opt.step()
        with torch.no_grad():
            self.V[:first], self.V[self.n_seen_classes :] = before[:first], before[self.n_seen_classes :]

    def ortho_loss(self):
        """mean((P P^T - I)^2) over the V_c of seen classes, or mean((P_new P_old^T)^2) when old ones are fixed."""
        P = self.V[: self.n_seen_classes].flatten(1)
        if not self.args.train_only_current_prompts:
            return (P @ P.T - torch.eye(len(P), device=P.device)).square().mean()
        old, new = P[: self.n_past_classes].detach(), P[self.n_past_classes :]
        return (new @ old.T).square().mean() if len(old) else 0.0 * new.sum()

    # prompts

    def context(self, rows):
        """Context vectors (K, n, W) of the given classes."""
        parts = []
        if self.mode == "general":
            parts.append(self.V.expand(len(self.handwritten[rows]), -1, -1))
        elif self.has_v:
            fixed = self.n_past_classes if self.args.train_only_current_prompts else 0
            V = torch.cat([self.V[:fixed].detach(), self.V[fixed:]]) if fixed else self.V
            parts.append(V[rows])
        if self.has_g:
            parts.append(self.g(self.handwritten[rows])[:, None])
        return torch.cat(parts, dim=1)

    def encode_keys(self, rows):
        """Unit keys (K, D) of the given classes, with gradient."""
        return normalize(self.prompts.encode(self.net, self.context(rows), rows).float(), dim=1)

    def image_keys(self, x, rows):
        """Unit keys (R, D) of some of the B * S prompts made from images with features x (B, D), as g reads them."""
        rows = torch.arange(rows.start, rows.stop)
        image, name = rows // self.n_seen_classes, rows % self.n_seen_classes
        context = self.g(x)[image][:, None]
        return normalize(self.prompts.encode(self.net, context, name).float(), dim=1)

    def image_logits(self, x, keys):
        """Logits (B, S) of features x (B, D) with the keys (B * S, D) that each image made."""
        return self.net.logit_scale.detach() * torch.einsum(
            "bd,bcd->bc", normalize(x, dim=1), keys.view(len(x), -1, keys.shape[1])
        )

    # inference

    @torch.no_grad()
    def seen_keys(self):
        if self.keys is None:
            self.keys = self.encode_keys(torch.arange(self.n_seen_classes))
        return self.keys

    def forward(self, x):
        features = self.encode(x)
        if self.mode == "cocoop":
            return torch.cat(
                [self.own_prompt_logits(part) for part in features.split(max(1, PROMPTS // self.n_seen_classes))]
            )
        return self.logits(features, self.seen_keys())

    def own_prompt_logits(self, features):
        """Logits (B, S) where each image makes the prompts itself."""
        query = normalize(features, dim=1) if self.args.cocoop_query == "unit" else features
        return self.image_logits(features, self.image_keys(query, slice(0, len(features) * self.n_seen_classes)))

    def future_forward(self, x):
        unit = self.args.future_scoring == "normalised"
        return self.all_logits(self.encode(x), self.unseen_keys(unit))

    def future_variants(self, x):
        """Other ways to score all names, measured along with future_forward: the released one, and zero-shot CLIP."""
        features = self.encode(x)
        other = self.args.future_scoring == "mammoth"
        return {
            "normalised" if other else "mammoth": self.all_logits(features, self.unseen_keys(other)),
            "zero_shot": self.logits(features, normalize(self.handwritten, dim=1)),
        }

    def all_logits(self, features, unseen):
        written = self.net.logit_scale.detach() * normalize(features, dim=1) @ unseen.T
        return torch.cat([self.forward(features), written], dim=1)

    @torch.no_grad()
    def unseen_keys(self, unit):
        """Keys (C - S, D) of names not seen yet."""
        rows = torch.arange(self.n_seen_classes, self.num_classes)
        raw = self.handwritten[rows]
        if self.args.future_keys == "generated" and len(rows):
            context = self.context(rows)
            if self.mode in {"combo", "class"}:
                context[:, : self.args.n_context] = self.V[: self.n_seen_classes].mean(0)
            raw = self.prompts.encode(self.net, context, rows).float()
        return normalize(raw, dim=1) if unit else raw


def prompt_mode(args) -> str:
    """combo, class, general, generated or cocoop; flags that exclude each other are refused."""
    if args.combo_context:
        for flag in ("general_context", "generated_context", "cocoop"):
            if getattr(args, flag):
                raise UserError(
                    f"--{flag} is a different form of prompt from --combo_context 1: give --combo_context 0 with it"
                )
        mode = "combo"
    elif args.general_context and args.generated_context:
        raise UserError("--general_context and --generated_context are two forms of prompt: give only one of them")
    elif args.cocoop and not args.generated_context:
        raise UserError("--cocoop 1 makes the generated context from the image: it needs --generated_context 1")
    else:
        mode = (
            "general"
            if args.general_context
            else "cocoop"
            if args.cocoop
            else "generated"
            if args.generated_context
            else "class"
        )
    if mode not in {"combo", "class"}:
        for flag in ("align_with_ortholoss", "train_only_current_prompts"):
            if getattr(args, flag):
                raise UserError(f"--{flag} is about class-specific vectors, which this form of prompt does not have")
    if args.past_names_train_g and not (mode == "combo" and args.train_only_current_prompts):
        raise UserError(
            "--past_names_train_g 1 is about --train_only_current_prompts 1 with a g in the prompt: "
            "give both, or leave it out"
        )
    if args.cocoop_query == "unit" and mode != "cocoop":
        raise UserError("--cocoop_query is about prompts made from the image: it needs --cocoop 1")
    if mode == "cocoop":
        for flag, value in (
            ("level_weight", args.level_weight),
            ("future_keys generated", args.future_keys == "generated"),
        ):
            if value:
                raise UserError(f"--{flag} needs one key per class; with --cocoop 1 every image has its own")
    return mode
