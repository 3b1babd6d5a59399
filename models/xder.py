"""X-DER: dark experience replay that updates stored logits with later classes and prepares unused outputs for them.

Boschini et al., TPAMI 2022, arXiv 2201.00766. Outputs h are split into past, current and future classes at each task; z
are stored logits. With (x, y) from the stream, (x', y', z') and (x'', y'') from memory,

    loss = CE(h_current(x), y) + alpha MSE(h(x'), z') + beta CE(h_past(x''), y'')
         + lambd SupCon of the future outputs, each task's on its own                             -> `prepared`
         + constr_eta mean max(0, constr_margin + max h_future - max h_own), own: the sample's present outputs
                                                                                                  -> `constraint`
         + dp_weight ||similarities of the outputs - those of the old network||^2                 -> `similarity`
    implant: where a stored z is to get outputs for classes later than its own, they are scaled down so that
             their maximum is gamma z_y, if it would be above z_y                                 -> `implant`

Choices: the memory is balanced over classes and filled after a task, with logits of images without augmentation; after
that every older sample gets the new classes' outputs. While a task runs, the drawn samples get new current and future
outputs with probability 1 / (number of times drawn). SupCon sees the stream and the first draw, at most
--simclr_batch_size of them, in --simclr_num_aug views made by the stream's own augmentation. Where z_y is negative, the
outputs are shifted, not scaled.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model xder --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import copy

import torch
from torch.nn.functional import cross_entropy, mse_loss, normalize

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, boolean, non_negative, positive, positive_int, real
from utils.memory.buffer import Buffer, apply
from utils.memory.exemplars import fill_buffer
from utils.passes import normalized


class XDer(ContinualModel):
    NAME = "xder"
    COMPATIBILITY = ["class-il", "task-il"]
    CONTRAST = True  # whether unused outputs are prepared by a contrastive loss
    TOY_ARGS = {
        "simclr_num_aug": 2,
        "simclr_batch_size": 4,
        "lambd": 0.5,
        "constr_eta": 0.5,
        "constr_margin": 1.0,
        "dp_weight": 0.5,
    }

    @classmethod
    def get_parser(cls, parser):
        add_rehearsal_args(parser)
        add = parser.add_argument
        add("--alpha", type=non_negative, required=True, help="weight of the stored logits")
        add("--beta", type=non_negative, required=True, help="weight of the stored labels")
        add("--gamma", type=real, default=0.85, help="implanted logits stay below this fraction of the label's")
        if cls.CONTRAST:
            add("--lambd", type=non_negative, default=0.05, help="weight of the future outputs' contrastive loss")
            add("--simclr_temp", type=positive, default=5.0, help="temperature of that loss")
            add("--simclr_batch_size", type=positive_int, default=64, help="samples in that loss")
            add("--simclr_num_aug", type=positive_int, default=4, help="views of each of these samples")
        add("--constr_eta", type=non_negative, default=0.1, help="weight of the margin to outputs of other tasks")
        add("--constr_margin", type=non_negative, default=0.3, help="size of that margin")
        add("--past_constraint", type=boolean, default=False, help="also apply the margin to past outputs")
        add("--future_constraint", type=boolean, default=True, help="apply the margin to future outputs")
        add("--dp_weight", type=non_negative, default=0.0, help="weight of the distillation of sample similarities")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size)
        self.register_buffer("draws", torch.zeros(args.buffer_size))
        self.old_net = None

    @property
    def current(self):
        return slice(self.n_past_classes, self.n_seen_classes)

    def answer(self, net, x):
        """Logits (B, C) of the network or a copy of it."""
        return net(x)

    def forward(self, x):
        return self.answer(self.net, x)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        args, past = self.args, self.n_past_classes
        self.opt.zero_grad()
        outputs = self(inputs)
        loss = cross_entropy(outputs[:, self.current], labels - past)
        loss = loss + self.constraint(outputs, self.current, past=True)
        views, of = [not_aug_inputs], [labels]
        if not self.buffer.is_empty():
            rows, plain, x, y, z, _ = self.buffer.get_data(
                args.minibatch_size, self.transform, return_index=True, device=self.device, return_not_aug=True
            )
            again = self(x)
            loss = loss + args.alpha * mse_loss(again, z)
            self.refresh(rows, z, again.detach(), y)
            views, of = [*views, plain.to(not_aug_inputs.device)], [*of, y]
            x, y, _, _ = self.buffer.get_data(args.minibatch_size, self.transform, device=self.device)
            again = self(x)
            loss = loss + args.beta * cross_entropy(again[:, :past], y) + self.constraint(again, slice(past))
        if self.CONTRAST and args.lambd and self.n_seen_classes < self.num_classes:
            loss = loss + args.lambd * self.prepared(torch.cat(views), torch.cat(of))
        if args.dp_weight and self.old_net is not None:
            loss = loss + args.dp_weight * self.similarity(inputs, outputs)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def constraint(self, outputs, own, past=False):
        """Hinge on the best output of other tasks against the best of the sample's own side."""
        found, args = outputs.sum() * 0, self.args
        good = outputs[:, own].amax(1)
        if args.future_constraint and self.n_seen_classes < self.num_classes:
            found = found + (outputs[:, self.n_seen_classes :].amax(1) + args.constr_margin - good).clamp(min=0).mean()
        if past and args.past_constraint and self.n_past_classes:
            found = found + (outputs[:, : self.n_past_classes].amax(1) + args.constr_margin - good).clamp(min=0).mean()
        return args.constr_eta * found

    def prepared(self, plain, labels):
        """Supervised contrastive loss of each future task's outputs, mean over those tasks."""
        plain, labels = plain[: self.args.simclr_batch_size], labels[: self.args.simclr_batch_size]
        views = torch.cat([apply(self.transform, plain) for _ in range(self.args.simclr_num_aug)])
        outputs, labels = self(views.to(self.device)), labels.repeat(self.args.simclr_num_aug)
        heads = [slice(*self.get_offsets(t)) for t in range(self.current_task + 1, self.n_tasks)]
        return torch.stack([contrast(outputs[:, head], labels, self.args.simclr_temp) for head in heads]).mean()

    def similarity(self, inputs, outputs):
        """Mean square of the change in cosines between the outputs of a batch's samples."""
        with torch.no_grad():
            wanted = normalize(self.answer(self.old_net, inputs), dim=1)
        own = normalize(outputs, dim=1)
        return (own @ own.T - wanted @ wanted.T).square().mean()

    def refresh(self, rows, stored, outputs, labels):
        """Give some of the drawn samples new outputs for the current and future classes."""
        places = rows.to(self.draws.device)
        self.draws[places] += 1
        chosen = (torch.rand(len(rows)) * self.draws[places].cpu() < 1).nonzero().flatten().to(rows.device)
        if len(chosen):
            new = implant(
                stored[chosen], outputs[chosen], labels[chosen], slice(self.n_past_classes, None), self.args.gamma
            )
            self.buffer.replace(rows[chosen], logits=new)

    @torch.no_grad()
    def end_task(self, dataset):
        if self.args.inference_only:
            return
        before = {} if self.buffer.is_empty() else self.buffer.serialize()
        count = dict.fromkeys(range(self.n_past_classes), 0)
        fill_buffer(self.buffer, dataset, self.current_task, required_attributes=["examples", "labels", "task_labels"])
        stored = self.buffer.serialize()
        outputs = self.answers(stored["examples"])
        logits, rows = outputs.clone(), torch.nonzero(stored["labels"] < self.n_past_classes).flatten()
        if len(rows):  # the first samples of every old class are the ones that stayed
            place = [self.nth_of_class(before["labels"], int(c), count) for c in stored["labels"][rows]]
            kept, labels = before["logits"][place], stored["labels"][rows]
            logits[rows] = implant(kept, outputs[rows], labels, self.current, self.args.gamma)
        stored["logits"] = logits
        self.buffer.load({name: stored[name] for name in ("examples", "labels", "logits", "task_labels")})
        self.draws.zero_()
        if self.args.dp_weight:
            self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)

    @staticmethod
    def nth_of_class(labels, label, count):
        """Row of the next sample of a class, in order."""
        count[label] += 1
        return int(torch.nonzero(labels == label).flatten()[count[label] - 1])

    def answers(self, images):
        """Logits (N, C) of plain images, in eval mode."""
        self.net.eval()
        inputs, size = normalized(images, self.normalization_transform), self.args.batch_size
        found = [self(inputs[i : i + size].to(self.device)).cpu() for i in range(0, len(inputs), size)]
        self.net.train()
        return torch.cat(found)


def implant(stored, outputs, labels, where: slice, gamma: float):
    """`stored` logits (B, C) with `outputs` at `where`, scaled down to a maximum of gamma z_y if above z_y."""
    new, truth = outputs[:, where], stored.gather(1, labels[:, None])  # (B, 1)
    highest = new.amax(1, keepdim=True)
    lowered = torch.where(truth > 0, new * (gamma * truth / highest.clamp(min=1e-12)), new - highest + truth)
    result = stored.clone()
    result[:, where] = torch.where(highest > truth, lowered, new)
    return result


def contrast(outputs, labels, temperature: float):
    """Supervised contrastive loss of unit outputs (N, D): samples of a label attract each other, mean over anchors."""
    unit = normalize(outputs, dim=1)
    alike = (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (unit @ unit.T / temperature).masked_fill(
        torch.eye(len(labels), dtype=torch.bool, device=labels.device), -torch.inf
    )
    log_share = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~alike, 0)
    partners = alike.sum(1)
    return -(log_share.sum(1) / partners.clamp(min=1))[partners > 0].sum() / max(len(labels), 1)
