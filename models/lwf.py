"""Learning without forgetting: the old network's answers on the new task's images are distilled; no images are stored.

Li & Hoiem, ECCV 2016, arXiv 1606.09282.

    before a task   Y_o = old network's logits of the task's images; then the new rows of the classifier alone are
                    trained on its fixed features (warm-up)                                      -> `begin_task`
    loss            CE over the seen classes + alpha * KL(softmax(Y_o / T) || softmax(z_o / T))  -> `observe`

The KL divergence has the gradient of the paper's cross-entropy with soft targets, and is 0 where the networks agree.

Choices: --old_outputs recorded (the paper's) takes Y_o once, on images without augmentation, network in eval mode;
network keeps a copy of the old network and runs it on each augmented batch. The warm-up sees each image's features
once, so its epochs (--warmup_epochs) cost almost nothing. Cross-entropy runs over all seen classes, since no task is
known at test time. In domain-il there are no new rows to warm up, and all classes are old. --mammoth_compat 1 records
Y_o on images that are not normalized, as Mammoth does.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model lwf --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.distillation import soft_divergence
from utils.flags import boolean, natural, non_negative, positive
from utils.passes import plain_batches
from utils.progress import progress


class Lwf(ContinualModel):
    NAME = "lwf"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--alpha", type=non_negative, default=0.5, help="weight of the distillation")
        parser.add_argument("--softmax_temp", type=positive, default=2.0, help="temperature of the distillation")
        parser.add_argument(
            "--warmup_epochs", type=natural, default=1, help="epochs that train only the new classifier rows"
        )
        parser.add_argument(
            "--old_outputs",
            choices=["recorded", "network"],
            default="recorded",
            help="old logits recorded once, or computed by a copy of the old network in each step",
        )
        parser.add_argument(
            "--mammoth_compat", type=boolean, default=False, help="record logits of unnormalized images"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.old_net = None

    @property
    def old(self):
        """Classes whose old answers are kept: all, where every domain has them."""
        return slice(self.n_seen_classes if self.SETTING == "domain-il" else self.n_past_classes)

    def begin_task(self, dataset):
        if self.current_task == 0 or self.args.inference_only:
            return
        logits, features, labels = self.look(dataset)
        if self.args.old_outputs == "recorded":
            if self.args.mammoth_compat:
                logits, _, _ = self.look(dataset, normalize=False)
            dataset.train_loader.dataset.add_extra_return_field("logits", logits.cpu())
        if self.SETTING != "domain-il":
            self.warm_up(features[labels >= 0], labels[labels >= 0])

    @torch.no_grad()
    def look(self, dataset, normalize=True):
        """Logits (N, C), features (N, D) and labels (N,) of the task's images under the current network."""
        training = self.net.training
        self.net.eval()
        found = []
        with progress("old outputs", len(dataset.train_loader), self.args) as bar:
            for inputs, labels in plain_batches(self, dataset, normalize):
                found.append((*self.net(inputs, returnt="both"), labels))
                bar.update(1)
        self.net.train(training)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def warm_up(self, features, labels):
        """Train the classifier's rows of the new classes on fixed features; the rest of the network is frozen."""
        new = slice(self.n_past_classes, self.n_seen_classes)
        opt = torch.optim.SGD(self.net.classifier.parameters(), lr=self.args.lr)
        for _ in range(self.args.warmup_epochs):
            for rows in torch.randperm(len(labels), device=labels.device).split(self.args.batch_size):
                opt.zero_grad()
                loss = F.cross_entropy(self.net.classifier(features[rows])[:, new], labels[rows] - new.start)
                loss.backward()
                opt.step()
        opt.zero_grad()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None, logits=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)[:, : self.n_seen_classes]
        loss = self.loss(outputs, labels)
        if self.old_net is not None:
            with torch.no_grad():
                logits = self.old_net(inputs)
        if logits is not None:
            wanted, own = logits[:, self.old], outputs[:, self.old]
            loss = loss + self.args.alpha * soft_divergence(own, wanted, self.args.softmax_temp)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def end_task(self, dataset):
        if self.args.old_outputs == "network":
            self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)
