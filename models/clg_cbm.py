"""CLG-CBM: a bottleneck of concepts in words between frozen CLIP features and classes, chosen by a gate per task.

Yu et al., CVPR 2025, arXiv 2503.23283. x is the unit feature of an image, concepts are texts of --descriptions.

    gate      linear (pool per new class rows) - batch norm - linear, cross-entropy over the new classes + the mean of
              |(d(row) / mean d - 1)^division_power|, d the Mahalanobis distance among the task's texts  -> `gate_loss`
              each row takes the nearest text that is not yet a concept                                  -> `choose`
    main      scores H E x, E the activations of all concepts, H a head per task: cross-entropy over the seen classes
              + sim * `alignment` of E x with x . concepts + sparsity (0.99 |H| + 0.005 |H|^2)           -> `main_loss`
    old       per step and old class a feature of the new class whose mean is nearest to its name, moved to the old
              mean; and sg_num draws of the Gaussian of two old classes

Choices: the last epoch is kept (released: the best on the current task's test set). Heads of older tasks are frozen, 0
for later concepts (released: old features move them). The texts' covariance gets a tenth of its mean variance added.

No table has a row of it; on the picture world:
    python main.py --model clg-cbm --descriptions tiny --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from models.utils.concepts import alignment, choose, gate, unlike
from models.utils.descriptions import descriptions
from models.utils.feature_training import FeatureTraining
from models.utils.vlm_model import add_vlm_args
from utils.class_means import class_means
from utils.errors import UserError
from utils.flags import natural, non_negative, path, positive, positive_int
from utils.generative.gaussians import FullGaussian


class ClgCbm(FeatureTraining):
    NAME = "clg-cbm"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"descriptions": "tiny", "pool": 2, "gate_epochs": 1, "lr_milestones": 1, "lr": 0.01}
    NOT_TRIED = {
        "descriptions": "the value is a file; tests/test_clg_cbm.py",
        "division_power": "one epoch of the gate chooses the same concepts; tests/test_clg_cbm.py",
    }

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adam", lr=1e-3, n_epochs=60, batch_size=48, lr_scheduler="multisteplr")
        parser.set_defaults(lr_milestones=[30, 40, 50])
        add = add_vlm_args(parser, names=False).add_argument
        add("--descriptions", type=path, help="JSON of lists of texts by class name, or tiny; required")
        add("--pool", type=positive_int, default=10, help="concepts per new class")
        add("--gate_epochs", type=natural, default=30, help="epochs of the gate")
        add("--gate_lr", type=positive, default=0.01, help="learning rate of the gate")
        add("--division_power", type=positive_int, default=5, help="power in the gate's regularizer")
        add("--sim", type=non_negative, default=1.0, help="weight of the alignment")
        add("--sparsity", type=non_negative, default=0.001, help="weight of the heads' norms")
        add("--sg_num", type=natural, default=1, help="Gaussian draws of two old classes per step")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        names, dim, most = self.dataset.get_class_names(), self.feature_dim, args.pool * self.num_classes
        own = descriptions(args.descriptions, names)
        distinct = list(dict.fromkeys(text for texts in own for text in texts))
        self.bank = normalize(self.token_features(self.net.tokenize(distinct)), dim=1)  # (M, D)
        place = {text: n for n, text in enumerate(distinct)}
        self.bank_of = [sorted({place[text] for text in texts}) for texts in own]  # rows of the bank by class
        self.names = self.text_features(names)  # (C, D)
        self.concepts = torch.zeros(0, dtype=torch.long, device=self.device)  # rows of the bank, K of them
        self.explainer = nn.Linear(dim, most).to(self.device)
        self.heads = nn.Linear(most, self.num_classes).to(self.device)
        nn.init.zeros_(self.heads.weight)
        self.gate = self.candidates = None  # of a task, within it
        self.gaussians = FullGaussian()
        self.means = torch.zeros(self.num_classes, dim, device=self.device)  # of unit features
        self.new = self.starts = self.counts = self.donors = None  # the task's features by class; a class for each old

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        features, first, end = normalize(features, dim=1), self.n_past_classes, self.n_seen_classes
        if not self.work_done:
            self.begin(features, labels, self.args.pool * (end - first))
        own, epochs = list(self.gate.parameters()), self.args.gate_epochs
        self.train_on("gate", features, labels, self.gate_loss, epochs, own, self.args.gate_lr)
        if "bottleneck" not in self.work_done:
            chosen = choose(self.gate[0].weight.detach(), self.bank[self.candidates])
            self.concepts = torch.cat([self.concepts, self.candidates[chosen]])
            k = len(self.concepts)
            with torch.no_grad():
                self.heads.weight[first:end, :k].uniform_(-(k**-0.5), k**-0.5)
        frozen = {"params": list(self.heads.parameters()), "weight_decay": 0.0}  # in part: rows of older tasks
        groups = [{"params": list(self.explainer.parameters())}, frozen]
        self.train_on("bottleneck", features, labels, self.main_loss, params=groups)
        self.gaussians.fit({int(c): features[labels == c] for c in labels.unique()})
        self.gate = self.candidates = self.new = self.starts = self.counts = self.donors = None

    def begin(self, features, labels, rows):
        """A new gate, the task's unused texts, class means, and for each old class its nearest new one."""
        first, end, dim = self.n_past_classes, self.n_seen_classes, self.feature_dim
        taken = set(self.concepts.tolist())
        mine = sorted({row for own in self.bank_of[first:end] for row in own} - taken)
        if len(mine) < rows:
            raise UserError(
                f"--pool {self.args.pool}: task {self.current_task + 1} needs {rows} concepts, but its classes have "
                f"{len(mine)} texts that are not used yet; lower --pool or add texts to --descriptions"
            )
        self.candidates = torch.tensor(mine, device=self.device)
        self.gate = gate(dim, rows, end - first).to(self.device)
        self.means[first:end] = class_means(features[None], labels, self.num_classes)[0, first:end]
        self.new, self.counts = features[labels.argsort(stable=True)], torch.bincount(labels, minlength=end)[first:]
        self.starts = self.counts.cumsum(0) - self.counts
        self.donors = (self.names[:first] @ normalize(self.means[first:end], dim=1).T).argmax(1)

    def gate_loss(self, x, y, rows, number):
        self.gate[1].train(len(x) > 1)  # no batch statistics of one image
        far = unlike(self.gate[0].weight, self.bank[self.candidates], self.args.division_power)
        return cross_entropy(self.gate(x), y - self.n_past_classes) + far

    def activations(self, x):
        """(B, K) of unit features, one number per concept."""
        return self.explainer(x)[:, : len(self.concepts)]

    def scores(self, x):
        """(B, S) of the seen classes; heads of older tasks are frozen."""
        first, k = self.n_past_classes, len(self.concepts)
        weight, bias = self.heads.weight[: self.n_seen_classes, :k], self.heads.bias[: self.n_seen_classes]
        weight, bias = (torch.cat([part[:first].detach(), part[first:]]) for part in (weight, bias))
        return self.activations(x) @ weight.T + bias

    def main_loss(self, x, y, rows, number):
        first, k = self.n_past_classes, len(self.concepts)
        old, old_labels = self.old_features()
        both = torch.cat([x, old])
        loss = cross_entropy(self.scores(both), torch.cat([y, old_labels]))
        concepts, new = self.bank[self.concepts], self.heads.weight[first : self.n_seen_classes, :k]
        loss = loss + self.args.sim * alignment(self.activations(x), x @ concepts.T)
        return loss + self.args.sparsity * (0.99 * new.abs().sum() + 0.005 * new.square().sum())

    def old_features(self):
        """For each old class one moved feature of its donor, then draws of two old classes; with labels."""
        first = self.n_past_classes
        old = torch.arange(first, device=self.device)
        place = (torch.rand(first).to(self.means) * self.counts[self.donors]).long()
        moved = self.new[self.starts[self.donors] + place] + self.means[old] - self.means[first + self.donors]
        two = torch.randperm(first)[:2] if self.args.sg_num else old[:0].cpu()
        if not len(two):
            return moved, old
        drawn = self.gaussians.sample(two, self.args.sg_num).to(self.device)  # (2, n, D)
        labels = two.to(self.device).repeat_interleave(self.args.sg_num)
        return torch.cat([moved, drawn.flatten(0, 1)]), torch.cat([old, labels])

    def forward(self, x):
        return self.scores(normalize(self.encode(x), dim=1))
