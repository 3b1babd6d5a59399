"""A vision transformer whose values get a learned vector of one class, the one whose key is nearest to CLIP's feature.

The second stage of STAR-Prompt (Menabue et al., ECCV 2024, arXiv 2403.06870). In each block, with CLIP's feature f and
the key k_c of each class seen,

    similarity  5 cos(f * softmax(A_c), k_c), kept for the nearest class and 0 for the others         -> `shifts`
    values      v + similarity * P_c of that class, or with --enable_confidence_modulation 0 v + P_c
    task        CE among the task's classes + lambda * mean over blocks of
                [mean (|p|^2 - 1)^2 over the task's P + mean (p . q)^2 of these with past ones]       -> `pull`
    memory      a mixture of Gaussians per class of the transformer's features                        -> `second_stage`
    alignment   a copy of the head, from the second task on: CE over all classes on samples of the mixtures,
                logits / (0.1 |logits|); the next task goes on from the head before it                -> `align`

P is drawn from N(0, 0.02), A is 0. Past rows of P and A are frozen.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from backbone.cosine import attended_cosines
from backbone.edits import ValueShift
from backbone.prompted_vit import PromptedClip, prompted_timm
from models.utils.answer_training import AnswerTraining
from models.utils.vlm_model import EVAL_ROWS
from utils.flags import boolean, natural, non_negative, positive, positive_int
from utils.generative import GENERATORS
from utils.schedulers import warmup_cosine


def add_second_stage_args(parser) -> None:
    """The flags of the second stage."""
    add = parser.add_argument
    add("--vit", help="timm:<name>, the transformer of the second stage (default: CLIP's image tower)")
    add("--vit_pretrained", type=boolean, default=True, help="with its published weights")
    add("--clip_grad", type=non_negative, default=0.0, help="maximum gradient norm, 0 for no clipping")
    text = "scale a class's vector with the similarity of its key"
    add("--enable_confidence_modulation", type=boolean, default=True, help=text)
    add("--lambda_ortho_second_stage", type=non_negative, default=10.0, help="weight of the term on the vectors")
    text = "learning rate of the head's alignment (plain SGD)"
    add("--learning_rate_gr_second_stage", type=positive, default=0.001, help=text)
    text = "epochs of the alignment, and 5 more for each task before"
    add("--num_epochs_gr_second_stage", type=natural, default=10, help=text)
    add("--num_samples_gr_second_stage", type=positive_int, default=256, help="samples per class and epoch")
    add("--gr_mog_n_components_second_stage", type=positive_int, default=5, help="components per mixture")


class ValuePrompts(AnswerTraining):
    """Part of a VLMModel that trains in end_task; it calls `second_stage`, and defines `class_keys`."""

    SECOND_NOT_TRIED = dict.fromkeys(("vit", "vit_pretrained"), "timm's networks are larger; tests/test_star_second.py")

    def make_second_stage(self) -> None:
        tower = prompted_timm(self.args.vit, self.args.vit_pretrained) if self.args.vit else PromptedClip(self.net)
        self.net.tower = tower.to(self.device)
        self.net.tower.register_forward_pre_hook(self.forward_counter)
        self.make_head(tower.width)
        self.P, self.A = nn.ParameterList(), nn.ParameterList()  # per task (L, n, W) and (L, n, D)
        self.features = GENERATORS["mog"](n_components=self.args.gr_mog_n_components_second_stage)
        self.aligned = self.second_opt = None

    def class_keys(self):
        """Unit keys (C, D) of the classes seen."""
        raise NotImplementedError(f"{type(self).__name__} defines no class_keys()")

    def compiled_parts(self):
        return [self.net.tower]

    def cached_inputs(self, loader):
        return None

    def shifts(self, query):
        """What each image (B) adds to the values of each block: (L, B, W)."""
        A, P = torch.cat(list(self.A), dim=1), torch.cat(list(self.P), dim=1)
        near = 5 * attended_cosines(query, A.softmax(-1), self.class_keys()[: A.shape[1]])  # (B, L, C)
        chosen = torch.zeros_like(near).scatter_(2, near.detach().argmax(2, keepdim=True), 1.0)
        share = chosen * near if self.args.enable_confidence_modulation else chosen
        return torch.einsum("blc,lcw->lbw", share, P)

    def states(self, images, query):
        """Class states (B, W) of images with the CLIP features (B, D)."""
        return self.net.tower(images, edits=[ValueShift(own) for own in self.shifts(query)])

    def pull(self):
        """The term on the task's vectors; 0 in the first task."""
        if len(self.P) == 1:
            return 0.0
        new, past = self.P[-1], torch.cat(list(self.P[:-1]), dim=1)
        sizes = (new.square().sum(2) - 1).square().mean(1)
        return (sizes + (new @ past.mT).square().mean((1, 2))).mean()

    def second_stage(self, dataset, rate: float, epochs: int) -> None:
        split, loader = dataset.train_loader.dataset, dataset.train_loader
        split.add_extra_return_field("query", self.image_features(split)[0].cpu())
        if not self.work_done.get("values"):
            self.grow_second_stage(split)
        for epoch in self.work("values", epochs):
            self.second_opt.param_groups[0]["lr"] = rate * warmup_cosine(epoch, 0, epochs)
            for images, labels, _, *extras in loader.epoch(epoch):
                known = labels >= 0
                images, labels, query = (t[known].to(self.device) for t in (images_of(images), labels, extras[-1]))
                self.work_loss = self.second_step(images, labels, query)
        if not self.work_done.get("head"):
            self.features.fit(self.features_by_class(loader))
            self.aligned = copy.deepcopy(self.head) if self.current_task else None
        self.align()
        self.second_opt.zero_grad()
        self.second_opt = None

    def grow_second_stage(self, split) -> None:
        for kept, size, spread in ((self.P, self.net.tower.width, 0.02), (self.A, self.net.embed_dim, 0.0)):
            kept.requires_grad_(False)
            rows = spread * torch.randn(self.net.tower.n_layers, self.n_classes_current_task, size)
            kept.append(nn.Parameter(rows.to(self.device)))
        self.grow_head(split)
        self.second_opt = torch.optim.Adam([self.P[-1], self.A[-1], *self.head.parameters()])

    def second_step(self, images, labels, query):
        loss = self.answer_loss(self.head(self.states(images, query)), labels)
        loss = loss + self.args.lambda_ortho_second_stage * self.pull()
        self.second_opt.zero_grad()
        loss.backward()
        if self.args.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.second_opt.param_groups[0]["params"], self.args.clip_grad)
        self.second_opt.step()
        return loss.detach()

    @torch.no_grad()
    def features_by_class(self, loader):
        """The transformer's features (n, W) of the task's classes."""
        batches = [
            (self.states(images_of(x).to(self.device), extras[-1].to(self.device)), y.to(self.device))
            for x, y, _, *extras in loader.with_batch_size(EVAL_ROWS)
        ]
        states, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return {int(c): states[labels == c] for c in labels.unique() if c >= 0}

    def align(self) -> None:
        """Re-fit a copy of the head on samples of all classes."""
        epochs = self.args.num_epochs_gr_second_stage + 5 * self.current_task
        for _ in self.work("head", epochs if self.current_task else 0):
            opt = torch.optim.SGD(self.aligned.parameters(), lr=self.args.learning_rate_gr_second_stage)
            samples = self.features.shuffled(self.n_seen_classes, self.args.num_samples_gr_second_stage)
            for x, y in zip(*(t.split(self.args.batch_size) for t in samples), strict=True):
                opt.zero_grad()
                logits = self.aligned(x)
                logits = logits / (0.1 * logits.norm(dim=1, keepdim=True).clamp(min=1e-7))
                loss = cross_entropy(logits, self.aligned.rows_of(y))
                loss.backward()
                opt.step()
                self.work_loss = loss.detach()

    @torch.no_grad()
    def second_answers(self, x):
        """Logits (B, C) of images."""
        if not len(self.P):
            return images_of(x).new_zeros(len(x), self.num_classes)
        head, found = self.aligned or self.head, []
        for images in images_of(x).split(EVAL_ROWS):
            found.append(head.spread(head(self.states(images, self.encode(images)))))
        return torch.cat(found)


def images_of(x):
    """The images of a batch, which may be a Pair."""
    return getattr(x, "image", x)
