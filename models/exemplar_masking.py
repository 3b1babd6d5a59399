"""ExemplarMasking: exemplars keep only the patches and words with high attention, so more fit into the same bytes.

Lee, Lee, Chiu & Tsai, "Exemplar Masking for Multimodal Incremental Learning", arXiv 2412.09549.

    image mask   patch i is kept iff A[class, i] > mean of A[class, :]                -> `utils.memory.masks.image_mask`
    text mask    words the class token or the discarded patches attend to           -> `utils.memory.masks.text_mask`
    selection    herding, masked, until the bytes of the class are used                     -> `select_class`
    replay       kept patches and words at their positions, augmented                       -> `replayed`
    loss         CE + kd_weight * KL to the previous network's answers, T = 2               -> `observe`

The image rule is the one of the published masks; a mask is made once, when its task ends, and never changes. Tuned are
scale-and-shift adapters after every layer of both towers (--tune ssf), the fusion transformer and a linear head.

Choices: CLIP's towers and a fusion transformer replace ViLT, which --fusion vilt uses (its [CLS] token is then
the only one: --attn_source and --fusion_lr do not apply). The available text of the paper describes the text
rule without its formula: --text_rule union keeps words above the mean of either attention; --direction says who
attends. Attention is the mean of the towers' own class tokens and the fusion's, over all blocks and heads
(--attn_source, --attn_layer, --attn_heads): the fusion's last block alone drops most nouns of the captions
(docs/exemplar_masking.md). Budget: as many bytes for each class as five full samples of it take (5x), or a number;
--buffer_bytes shares a total among the classes seen. --budget_unit tokens counts patches and words, bytes_jpeg keeps
patches as JPEG, exemplars counts records: what a mask changes at an equal count. --exemplar_codec masked_jpeg combines
the mask and JPEG of --jpeg_quality. A record that does not fit ends the class (--budget_fill skip: smaller ones are
tried). Augmentation (--exemplar_aug) is background by default: patches of a new image with at most the mean attention,
whatever --mask_rule says, fill the holes of an exemplar, so that holes do not distinguish old classes from new ones
(docs/exemplar_masking.md compares; swap takes the text of another exemplar of the class). --replay_fill zero or mean
puts black or gray patches into what is still empty. Three heads are measured in every run: the linear one, the nearest
mean of exemplars, and balanced, a ridge regression on the exemplars in which every class weighs the same
(BALANCED_RIDGE). --predict says which one answers, the record has the others under their names. Controls of the mask
are --mask_rule random, inverse, oracle and text_only. Nothing augments the stream's own images. The adapters are fp32
whatever --clip_dtype is; --tune full requires fp32. Weight decay leaves out parameters of one dimension
(--decay_vectors 1: all): it would pull the adapters' scale factors to 0, not to 1.

No table has a row of it; an arm of scripts/claims/exemplar_masking.yaml, one seed:
    python main.py --model exemplar-masking --buffer_bytes_per_class 5x --dataset mm-tiny --phases 5 --n_epochs 3 \
        --device cpu --seed 0 --picture_seed 0
"""

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, pad

from backbone.clip_files import openai_clip
from backbone.fusion import TOY_FUSION, add_fusion_args, fusion_of
from backbone.hub import HubBackbone
from backbone.hub_flags import add_hub_args
from backbone.multimodal import HEADS, LAYERS, SOURCES, TUNED, MultimodalNet
from backbone.vilt import ViltNet
from models.utils.vlm_model import EVAL_ROWS, VLMModel, add_vlm_args
from utils.batch_transforms import BatchTransform, Fixed
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.flags import fraction, non_negative, positive
from utils.memory.exemplar_memory import MASKING, ExemplarMemory, add_exemplar_args
from utils.memory.exemplars import balanced_head, batches_by_class, means_of, unit_rows
from utils.memory.masks import image_mask
from utils.memory.records import GREY, Tokens, fill_grid, full_tokens, patchify
from utils.memory.token_augment import AUGMENTATIONS, background, mix_patches, partners, swap, token_drop
from utils.pair import Pair
from utils.settings import option

ROWS = EVAL_ROWS // 2  # samples encoded at once outside of training: their attention is in memory too
BALANCED_RIDGE = 0.1
ANSWERING = ("linear", "nme", "balanced")
TOKEN_DROP = 0.2  # share of patches and words that token_drop takes, times --aug_p


class ExemplarMasking(VLMModel):
    NAME = "exemplar-masking"
    COMPATIBILITY = ["class-il", "task-il"]
    FROZEN_TOWER = False
    FUSES_TEXT = True
    TOY_ARGS = TOY_FUSION | {
        "fusion_layers": 2,
        "buffer_bytes_per_class": "2x",
    }
    NOT_TRIED = {
        "fusion_weights": "the shipped ones have other sizes; tests/test_clumo.py",
        **dict.fromkeys(
            ("fusion", "vilt_weights", "vilt_resolution"),
            "no weights of ViLT are embedded; tests/test_vilt.py makes tiny ones",
        ),
        **dict.fromkeys(
            (
                "sum_beta",
                "jpeg_quality",
                "box_threshold",
                "budget_fill",
                "direction",
                "text_rule",
                "look_at",
                "exemplar_aug",
                "aug_p",
            ),
            "acts only with another flag's value, or on texts; tests/test_exemplar_masking.py",
        ),
    }

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adamw", lr=1e-3, optim_wd=0.02, decay_vectors=False)
        add = add_vlm_args(parser, names=False).add_argument
        add_fusion_args(parser)
        add(
            "--fusion_lr",
            type=non_negative,
            default=0.1,
            help="multiplier of the fusion's learning rate after the first task",
        )
        add_hub_args(parser, "fusion", ["vilt"])
        add(
            "--tune", choices=TUNED, default="ssf", help="trained in the towers: scale-and-shift adapters, all, nothing"
        )
        add("--look_at", choices=["both", "image", "text"], default="both", help="image: no words; text: no patches")
        add("--attn_source", choices=SOURCES, default="mean", help="class token that makes the masks; mean: both")
        add("--attn_layer", choices=LAYERS, default="mean", help="block whose attention makes the masks; mean: all")
        add("--attn_heads", choices=HEADS, default="mean", help="mean or maximum over the heads")
        add_exemplar_args(parser)
        add(
            "--replay_fill",
            choices=["drop", "zero", "mean"],
            default="drop",
            help="masked patches on replay: dropped, black, gray",
        )
        add(
            "--replay_ratio",
            type=fraction,
            default=0.0,
            help="exemplars per new sample in a batch (0: each once per epoch)",
        )
        add("--exemplar_aug", choices=AUGMENTATIONS, default="background", help="augmentation of exemplars")
        add("--aug_p", type=fraction, default=0.5, help="probability of the augmentation")
        add("--kd_weight", type=non_negative, default=1.0, help="weight of the distillation")
        add("--kd_temperature", type=positive, default=2.0, help="temperature of the distillation")
        add("--predict", choices=ANSWERING, default="linear", help="linear head, nearest mean, or balanced regression")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.look_at == "text" and "jpeg" in args.exemplar_codec + args.budget_unit:
            raise UserError(
                "--look_at text keeps no patches to store as JPEG: leave JPEG out of --exemplar_codec and --budget_unit"
            )
        if args.tune == "full" and args.clip_dtype != "fp32":
            raise UserError(
                f"--clip_dtype {args.clip_dtype}: --tune full trains CLIP's weights, which requires fp32 "
                "(bf16 products: -O 2)"
            )
        clip = self.net
        if isinstance(clip, HubBackbone):
            if args.attn_source == "tower":
                raise UserError(
                    "--attn_source tower is about CLIP's towers; ViLT does not have them: leave the flag out"
                )
            self.net = ViltNet(clip, self.num_classes, args.tune).to(self.device)
        else:
            self.net = MultimodalNet(clip, fusion_of(clip, args), self.num_classes, args.tune).to(self.device)
        self.null = clip.tokenize("")[:, :2]  # start and end: the text of images alone
        self.preprocess, self.tokenizer = clip.preprocess, clip.tokenizer
        clip.tokenizer = clip.preprocess = None
        self.memory = ExemplarMemory(args, self.net.patch_width, self.net.cells)
        self.teacher = None  # trained parameters of the previous network, by name
        self.rows = None  # unit features of the exemplars and their classes; None when the network has changed since
        self.order = None  # exemplars of an epoch
        self.measured: dict[str, list[float]] = {}
        self.opt = self.get_optimizer()

    def checkpoint_skip(self):
        return {"store", "encoder", "null", "preprocess", "tokenizer"}

    def compiled_parts(self):
        return [self.net]

    def change_transform(self, dataset):
        for split in (
            dataset.test_loaders[-1].dataset,
            *([dataset.train_loader.dataset] if dataset.train_loader else []),
        ):
            in_memory = hasattr(split, "batch_form") and split.batch_form() is not None
            split.transform = BatchTransform([Fixed(self.net.clip.normalize_images)]) if in_memory else self.preprocess

    def get_optimizer(self, params=None, lr=None):
        """The fusion has its own learning rate after the first task."""
        if params is not None or not isinstance(self.net, MultimodalNet):
            return super().get_optimizer(params, lr)
        own = {id(p) for p in self.net.fusion.parameters()}
        trained = [p for p in self.net.parameters() if p.requires_grad]
        rest = [p for p in trained if id(p) not in own]
        groups = [{"params": rest}]
        rate = option(self.args, "lr") or 0.0
        factor = self.args.fusion_lr if self.current_task else 1.0
        groups.append({"params": [p for p in trained if id(p) in own], "lr": rate * factor})
        return super().get_optimizer(groups)

    # tokens

    def tokens(self, x, as_bytes: bool = False) -> Tokens:
        """Images (B, 3, R, R) as the tower takes them, or Pairs; `as_bytes`: images in [0, 1], patches of bytes."""
        image, ids = (x.image, x.text) if isinstance(x, Pair) else (x, self.null.expand(len(x), -1))
        if self.args.look_at == "image":
            ids = self.null.expand(len(image), -1)
        patches = patchify(self.net.clip.normalize_images(image) if as_bytes else image, self.net.side).to(self.device)
        found = full_tokens(self.net.in_bytes(patches) if as_bytes else patches, ids.to(self.device))
        if self.args.look_at == "text":
            found = found._replace(patches=found.patches[:, :0], places=found.places[:, :0], seen=found.seen[:, :0])
        return found

    def run_net(self, tokens: Tokens, parameters=None) -> torch.Tensor:
        return functional_call(self.net, parameters, (tokens,)) if parameters else self.net(tokens)

    def replayed(self, rows: torch.Tensor, fresh: Tokens) -> tuple[Tokens, torch.Tensor]:
        """Exemplars of these rows, augmented, and their labels; `fresh` are the batch's new samples."""
        records, kind = self.memory.records, self.args.exemplar_aug
        found, labels = records.decode(rows), records.labels
        use = torch.rand(len(rows)) < self.args.aug_p
        if kind in {"swap", "mix_patches"}:
            other = records.decode(partners(labels, rows))
            longest = self.net.clip.context_length
            found = swap(found, other, use) if kind == "swap" else mix_patches(found, other, use, longest)
        elif kind == "background" and fresh.patches.shape[1] and self.args.exemplar_codec in MASKING:
            lent = fresh.rows(torch.arange(len(rows)) % len(fresh.ids))
            spare = ~image_mask(self.attend(lent)[1].image, lent.seen)  # by attention whatever --mask_rule says
            found = background(found, self.net.in_bytes(lent.patches).cpu(), spare.cpu(), use)
        elif kind == "token_drop":
            found = token_drop(found, self.args.aug_p * TOKEN_DROP)
        if self.args.replay_fill != "drop" and self.args.look_at != "text":
            found = fill_grid(found, self.net.cells, {"zero": 0, "mean": GREY}[self.args.replay_fill])
        return found.to(self.device), labels[rows].to(self.device)

    def attend(self, tokens: Tokens):
        """(features, attention) by which exemplars are chosen and masked."""
        args = self.args
        self.forward_counter.add(tokens)
        return self.net.attend(tokens, args.attn_source, args.attn_layer, args.attn_heads)

    # training

    def begin_task(self, dataset):
        samples = getattr(dataset.train_loader.dataset, "samples", None)
        if self.args.mask_rule == "oracle" and getattr(samples, "object_cells", None) is None:
            raise UserError("--mask_rule oracle: this stream does not tell where its objects are; mm-tiny does")
        self.opt = self.get_optimizer()

    def begin_epoch(self, epoch, dataset):
        self.order = torch.randperm(len(self.memory)) if len(self.memory) else None

    def rows_to_replay(self, n_new: int) -> torch.Tensor:
        """The next exemplars of the epoch's order, or --replay_ratio as many as there are new samples."""
        if self.order is None:
            return torch.zeros(0, dtype=torch.long)
        if self.args.replay_ratio:
            return torch.randint(len(self.order), (max(1, round(self.args.replay_ratio * n_new)),))
        batches, step = len(self.dataset.train_loader), self.epoch_iteration
        return self.order[step * len(self.order) // batches : (step + 1) * len(self.order) // batches]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.rows = None
        fresh = self.tokens(inputs)
        parts, targets = [fresh], [labels]
        rows = self.rows_to_replay(len(labels))
        if len(rows):
            old, old_labels = self.replayed(rows, fresh)
            parts, targets = [*parts, old], [*targets, old_labels]
        self.opt.zero_grad()
        # new samples and exemplars separately: the second are shorter, and padding would cost as much as patches
        logits = torch.cat([self.run_net(part) for part in parts])[:, : self.n_seen_classes]
        loss = cross_entropy(logits, torch.cat(targets))
        if self.teacher is not None and self.args.kd_weight:
            with torch.no_grad():
                wanted = torch.cat([self.run_net(part, self.teacher) for part in parts])[:, : self.n_past_classes]
            own = logits[:, : self.n_past_classes]
            loss = loss + self.args.kd_weight * soft_divergence(own, wanted, self.args.kd_temperature)
        loss.backward()
        self.opt.step()
        return loss.detach()

    # exemplars

    @torch.no_grad()
    def end_task(self, dataset):
        self.order, first, end = None, *dataset.get_offsets(self.current_task)
        self.net.eval()
        self.memory.make_room(end)
        for batches, label in batches_by_class(dataset.train_loader, first, end):
            parts = [self.tokens(images, as_bytes=True) for images in batches]
            if parts:
                cells = self.object_cells(dataset.train_loader.dataset, label)
                self.select_class(Tokens(*map(torch.cat, zip(*parts, strict=True))), label, end, cells)
        self.net.train()
        self.teacher = {name: p.detach().clone() for name, p in self.net.named_parameters() if p.requires_grad}
        self.rows = None

    def object_cells(self, split, label: int):
        """(N, cells) of the object in each sample of a class, which --mask_rule oracle keeps."""
        if self.args.mask_rule != "oracle":
            return None
        return split.samples.object_cells[split.rows[split.targets == label]]

    def select_class(self, full: Tokens, label: int, n_seen: int, cells=None):
        """Features and masks of all samples of a class in one pass, then records in herding order within the budget."""
        features, masks = self.features_and_masks(full, cells)
        if self.args.herd_on == "masked":
            features, _ = self.features_and_masks(self.memory.masked(full, *masks[:2]))
        self.memory.add_class(
            full.to("cpu"), label, normalize(features.cpu(), dim=1), *(m.cpu() for m in masks), n_seen
        )

    def features_and_masks(self, tokens: Tokens, cells=None):
        """Features (N, W), and of all samples: kept patches, kept words, attention of the patches, which are words."""
        features, masks = [], []
        for rows in torch.arange(len(tokens.ids), device=tokens.ids.device).split(ROWS):
            part = tokens.rows(rows)
            found, attention = self.attend(part)
            features.append(found)
            own = None if cells is None else cells[rows.cpu()].to(rows.device)
            masks.append((*self.memory.masks(attention, part, own), attention.image))
        return torch.cat(features), [torch.cat(column) for column in zip(*masks, strict=True)]

    # inference

    def forward(self, x):
        return self.answer(self.features(self.tokens(x)), self.args.predict)

    def features(self, tokens: Tokens) -> torch.Tensor:
        self.forward_counter.add(tokens)
        return self.net.features(tokens)

    def answer(self, features, by: str):
        """Logits (B, C) of the classes seen."""
        if by == "linear":
            return self.net.classifier(features)[:, : max(self.n_seen_classes, 1)]
        rows, owners = self.rows = self.rows or self.exemplar_rows()
        features = normalize(features, dim=1)
        if by == "balanced":
            return pad(features, (0, 1), value=1.0) @ balanced_head(rows, owners, self.n_seen_classes, BALANCED_RIDGE)
        means = means_of(rows, owners, self.n_seen_classes)
        # not by a matrix product, which turns an infinitely distant class into NaN
        return -torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").square()

    @torch.no_grad()
    def exemplar_rows(self):
        """Unit features of the stored exemplars under the current network, and of training images for a class without
        exemplars; their classes."""
        memory, every = self.memory.records, torch.arange(len(self.memory))
        parts = [self.features(memory.decode(rows).to(self.device)) for rows in every.split(ROWS) if len(rows)]
        return unit_rows(
            torch.cat(parts) if parts else None,
            memory.labels[every].to(self.device),
            self.n_seen_classes,
            lambda images: self.features(self.tokens(images, as_bytes=True)),
            self.dataset.train_loader,
        )

    # what is measured in addition to the answers

    @torch.no_grad()
    def end_eval(self, dataset, accs):
        """Scores of the other heads; of every task's exemplars: number per class, bytes, kept shares and attention."""
        scores = {head: [] for head in ANSWERING if head != self.args.predict}
        for loader in dataset.test_loaders:
            found = [(self.features(self.tokens(batch[0].to(self.device))), batch[1]) for batch in loader]
            features, labels = (torch.cat(column) for column in zip(*found, strict=True))
            for head, values in scores.items():
                right = self.answer(features, head).argmax(1).cpu() == labels
                values.append(100 * float(right.float().mean()))
        tasks = [dataset.get_offsets(t) for t in range(len(dataset.test_loaders))]
        self.measured = {**scores, **self.memory.statistics(tasks)}
        if self.run and self.run.folder and self.current_task == option(self.args, "stop_after", dataset.N_TASKS - 1):
            self.memory.draw(self.run.folder / "exemplars.png", dataset, self.words_of)

    def extra_scores(self):
        return self.measured

    def words_of(self, ids: list[int]) -> str:
        """The text of token ids, start and end left out."""
        if self.tokenizer is not None:
            return self.tokenizer.decode(ids)
        return openai_clip().simple_tokenizer.SimpleTokenizer().decode(ids[1:-1])
