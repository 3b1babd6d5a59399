"""LUCIR: cosine classifier, feature distillation, and a margin between old samples and similar new classes.

Hou et al., CVPR 2019 ("Learning a unified classifier incrementally via rebalancing"). With f the features, f* those of
the old network, w_c the rows of the classifier, eta its learned scale,

    loss = CE(eta cos(w, f)) + lambda_t mean(1 - cos(f, f*)) + lamda_mr * margin                 -> `observe`
    lambda_t = lamda_base sqrt(C_o / C_n)                                                        -> `begin_task`
    margin   = mean over stored samples of sum_k max(0, m - cos(w_y, f) + cos(w_k, f)), k the k_mr most similar new
               classes                                                                           -> `margin_ranking`
    new rows start as the mean unit feature of their class, at the mean length of the old rows   -> `imprint`
    exemplars by herding, M / C for each class; then the classifier is tuned on them alone       -> `end_task`

Choices: old rows keep their direction while new classes are learned (the features are kept close to them). The
class-balanced tuning works on features of exemplars without augmentation, encoded once: full-batch steps, one for each
of --fitting_epochs. The last ReLU of the network is kept. --mammoth_compat 1 takes lambda_t from the counts of the
previous task, so that the second task has no distillation, as in Mammoth.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model lucir --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
import torch.nn.functional as F

from backbone.cosine import CosineLinear
from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import add_memory_args, boolean, natural, non_negative, positive, positive_int
from utils.memory.buffer import Buffer
from utils.memory.exemplars import (
    add_rule_arg,
    as_unit,
    check_rule,
    features_of,
    fill_buffer,
    icarl_replay,
    images_by_class,
)


class Lucir(ContinualModel):
    NAME = "lucir"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_memory_args(parser)
        add_rule_arg(parser)
        add = parser.add_argument
        add("--lamda_base", type=non_negative, default=5.0, help="weight of the feature distillation")
        add("--lamda_mr", type=non_negative, default=1.0, help="weight of the margin loss")
        add("--k_mr", type=positive_int, default=2, help="new classes that a stored sample is kept apart from")
        add("--mr_margin", type=non_negative, default=0.5, help="margin between cosines")
        add("--fitting_epochs", type=natural, default=20, help="steps of the classifier on the exemplars after a task")
        add("--lr_finetune", type=positive, default=0.01, help="learning rate of those steps")
        add("--imprint_weights", type=boolean, default=True, help="new rows start at their class's mean feature")
        add("--mammoth_compat", type=boolean, default=False, help="distillation weight of the previous task")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_rule(args, self.num_classes)
        old = getattr(self.net, "classifier", None)
        if not hasattr(old, "in_features"):
            raise UserError("lucir replaces a linear classifier, but this --backbone does not have one")
        self.net.classifier = CosineLinear(old.in_features, self.num_classes).to(self.device)
        self.opt = self.get_optimizer()
        self.buffer = Buffer(args.buffer_size, codec="uint8")
        self.old_net = None
        self.lamda = 0.0

    def begin_task(self, dataset):
        if self.current_task == 0:
            return
        start, end = dataset.get_offsets(self.current_task - self.args.mammoth_compat)
        self.lamda = self.args.lamda_base * (start / (end - start)) ** 0.5
        if self.args.imprint_weights and not self.args.inference_only:
            self.imprint(dataset)
        icarl_replay(self, dataset)

    @torch.no_grad()
    def imprint(self, dataset):
        weight = self.net.classifier.weight
        length = weight[: self.n_past_classes].norm(dim=1).mean()
        for images, label in images_by_class(dataset.train_loader, self.n_past_classes, self.n_seen_classes):
            if len(images):
                features = features_of(self.net, images, self.normalization_transform, self.device)
                weight[label] = length * F.normalize(F.normalize(features, dim=1).mean(0), dim=0)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        features = self.net(inputs, returnt="features").flatten(1)
        cosines = self.cosines(features)  # (B, S)
        loss = self.loss(self.net.classifier.scale * cosines, labels)
        if self.old_net is not None:
            with torch.no_grad():
                before = self.old_net(inputs, returnt="features").flatten(1)
            loss = loss + self.lamda * (1 - F.cosine_similarity(features, before)).mean()
            margin = margin_ranking(cosines, labels, self.n_past_classes, self.args.k_mr, self.args.mr_margin)
            loss = loss + self.args.lamda_mr * margin
        loss.backward()
        self.opt.step()
        return loss.detach()

    def cosines(self, features):
        """Cosines (B, S) with the rows of the seen classes; no gradient reaches old rows."""
        weight = self.net.classifier.weight
        rows = torch.cat([weight[: self.n_past_classes].detach(), weight[self.n_past_classes : self.n_seen_classes]])
        return F.linear(F.normalize(features, dim=1), F.normalize(rows, dim=1))

    def end_task(self, dataset):
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
        if self.current_task and not self.args.inference_only:
            self.tune()
        self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)

    def tune(self):
        """The classifier alone, on the balanced exemplars."""
        stored, classifier = self.buffer.serialize("cpu"), self.net.classifier
        features = features_of(self.net, as_unit(stored["examples"]), self.normalization_transform, self.device)
        labels = stored["labels"].to(self.device)
        opt = torch.optim.SGD(
            classifier.parameters(),
            lr=self.args.lr_finetune,
            momentum=self.args.optim_mom,
            weight_decay=self.args.optim_wd,
        )
        for _ in range(self.args.fitting_epochs):
            opt.zero_grad()
            F.cross_entropy(classifier(features)[:, : self.n_seen_classes], labels).backward()
            opt.step()
        opt.zero_grad()


def margin_ranking(cosines, labels, n_old: int, k: int, margin: float):
    """Mean over the samples of old classes of sum_k max(0, margin - cos of their class + cos of k nearest new ones)."""
    old = labels < n_old
    nearest = cosines[:, n_old:].topk(min(k, cosines.shape[1] - n_old), dim=1).values  # (B, K)
    gap = F.relu(margin - cosines.gather(1, labels[:, None]) + nearest).sum(1)
    return torch.where(old, gap, 0).sum() / old.sum().clamp(min=1)
