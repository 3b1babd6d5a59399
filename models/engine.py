"""ENGINE: a linear map per task on each side of frozen CLIP, descriptions of names, and a Gaussian score at test.

Zhou et al., ICCV 2025, arXiv 2503.08510.

    maps     image A = sum_t A_t, text B = sum_t B_t, the newest pair is trained                -> `SummedLinear`
    loss     CLIP's loss of A f and B t over the batch and --sample_noise draws around old class means
             + text_des  InfoNCE(B t_c, the name with one of its descriptions), + image_aug  InfoNCE(A f, f of the
             image with noise of 0.25)                                                             -> `loss_of`
    scores   stat * (Gaussian score of the unit feature in front of CLIP's projection, row of unit length)
             + (1 - stat) * cos(A f, B t), whose --rerank_top best classes also get the cosine with their descriptions

Choices: descriptions come from --descriptions, a JSON of the user, `tiny` for the picture world; without it text_des
and rerank are 0. At test a class has the mean of its descriptions (released: random ones), and a class outside the best
gets the least of their cosines. Equal classes in a batch are not negatives. Noise is added to pixels in [0, 1], once
per image and epoch, with the image encoded again (--image_aug 0: never). The Gaussian has one covariance over all
tasks. InfoNCE has no temperature, and the maps read raw features, as in the released code.

No table has a row of it; on the picture world:
    python main.py --model engine --descriptions tiny --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch.nn.functional import cross_entropy, normalize

from models.utils.descriptions import descriptions
from models.utils.projections import SummedLinear, paired_contrast
from models.utils.unprojected import SharedGaussian, Unprojected
from models.utils.vlm_model import add_vlm_args
from utils.class_means import class_means
from utils.flags import fraction, non_negative, path, positive_int

NOISE = 0.25  # of pixels in [0, 1]


def info_nce(rows, partners):
    """Mean cross-entropy that row i of cosines (N, N) is its own partner's."""
    logits = normalize(rows, dim=1) @ normalize(partners, dim=1).T
    return cross_entropy(logits, torch.arange(len(rows), device=rows.device))


class Engine(Unprojected):
    NAME = "engine"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"descriptions": "tiny", "rerank_top": 3}
    NOT_TRIED = {"descriptions": "the value is a file; tests/test_described.py"}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=0.05, optim_mom=0.9, optim_wd=0.05, n_epochs=10, batch_size=64, lr_scheduler="cosine")
        add = add_vlm_args(parser).add_argument
        add("--descriptions", type=path, help="JSON of lists of texts by class name, or tiny for the picture world")
        add("--text_des", type=non_negative, default=2.0, help="weight of the loss with descriptions")
        add("--image_aug", type=non_negative, default=0.5, help="weight of the loss with noisy images")
        add("--sample_noise", type=non_negative, default=0.25, help="spread of draws around old class means")
        add("--stat", type=fraction, default=0.8, help="weight of the Gaussian score")
        add("--rerank", type=fraction, default=0.5, help="weight of the descriptions among the best classes")
        add("--rerank_top", type=positive_int, default=5, help="classes that descriptions rerank")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        names, (width, dim) = self.dataset.get_class_names(), self.projection.shape
        written = [own[0].format(name) for name, own in zip(names, self.class_templates(), strict=True)]
        self.texts = self.raw_texts(written)  # (C, D)
        self.described, self.starts, self.lengths = None, None, None
        if args.descriptions:
            own = descriptions(args.descriptions, names)
            pairs = zip(names, own, strict=True)
            self.described = self.raw_texts([f"{n} with {text}" for n, texts in pairs for text in texts])  # by class
            self.lengths = torch.tensor([len(texts) for texts in own], device=self.device)
            self.starts = self.lengths.cumsum(0) - self.lengths
        self.means = torch.zeros(self.num_classes, dim, device=self.device)  # of raw features
        self.gaussian = SharedGaussian(self.num_classes, width)
        self.head = torch.zeros(self.num_classes, width, device=self.device), self.texts.new_zeros(self.num_classes)
        self.seer, self.reader = (SummedLinear(dim).to(self.device) for _ in range(2))
        self.noisy = None  # features of the task's images with noise, of this epoch
        self.split = None  # the task's images, within it
        self.opt = self.get_optimizer()

    def raw_texts(self, texts):
        return self.token_features(self.net.tokenize(texts))

    def get_parameters(self):
        return [*self.seer.newest.parameters(), *self.reader.newest.parameters()] if hasattr(self, "reader") else []

    def end_task(self, dataset):
        z, labels = self.labeled(dataset)
        features = z @ self.projection
        if not self.work_done:
            if self.current_task:
                self.seer.grow()
                self.reader.grow()
            first, end = self.n_past_classes, self.n_seen_classes
            self.means[first:end] = class_means(features[None], labels, self.num_classes)[0, first:end]
            self.gaussian.add(z, labels)
            self.head = tuple(part.float().to(self.device) for part in self.gaussian.solve())
        self.split = dataset.train_loader
        self.train_on("maps", features, labels, self.loss_of)
        self.split = self.noisy = None

    @torch.no_grad()
    def begin_pass(self, n):
        if not self.args.image_aug:
            return
        rows = []
        for images, labels in self.split.with_batch_size(256).plain():
            images = getattr(images, "image", images)[labels >= 0].to(self.device)
            noisy = (images + NOISE * torch.randn(images.shape).to(images)).clamp(0, 1)
            self.forward_counter.add(noisy)
            rows.append(self.net.encode_image(self.net.normalize_images(noisy)).float())
        self.noisy = torch.cat(rows)

    def loss_of(self, x, y, rows, number):
        old = torch.arange(self.n_past_classes, device=x.device)
        drawn = self.means[old] + self.args.sample_noise * torch.randn(len(old), x.shape[1]).to(x)
        images = normalize(self.seer(torch.cat([x, drawn])), dim=1)
        y = torch.cat([y, old])
        texts = self.reader(self.texts[: self.n_seen_classes])
        loss = paired_contrast(images, normalize(texts, dim=1)[y], y, self.net.logit_scale.detach())
        if self.described is not None:
            lengths, starts = (t[: self.n_seen_classes] for t in (self.lengths, self.starts))
            picked = starts + (torch.rand(len(lengths)).to(x) * lengths).long()
            loss = loss + self.args.text_des * info_nce(texts, self.described[picked])
        if self.noisy is not None:
            loss = loss + self.args.image_aug * info_nce(self.seer(x), self.noisy[rows])
        return loss

    def forward(self, x):
        z, seen = self.encode(x), self.n_seen_classes
        weights, bias = self.head
        gaussian = normalize(normalize(z, dim=1) @ weights[:seen].T + bias[:seen], dim=1)
        images = normalize(self.seer(z @ self.projection), dim=1)
        cosines = images @ normalize(self.reader(self.texts[:seen]), dim=1).T
        if self.described is not None:
            cosines = torch.lerp(cosines, self.reranked(images, cosines), self.args.rerank)
        return self.args.stat * gaussian + (1 - self.args.stat) * cosines

    def reranked(self, images, cosines):
        """(B, C): for the best classes of each row the cosine with their mean description, for others the least."""
        classes = torch.arange(self.num_classes, device=images.device).repeat_interleave(self.lengths)
        rows = normalize(self.reader(self.described), dim=1)
        keys = normalize(class_means(rows[None], classes, self.num_classes)[0], dim=1)[: self.n_seen_classes]
        best = cosines.topk(min(self.args.rerank_top, len(keys)), dim=1).indices
        scores = (images @ keys.T).gather(1, best)
        least = scores.min(1, keepdim=True).values.expand_as(cosines)
        return least.scatter(1, best, scores)
