"""GSS: replay from a memory whose samples have gradients as different from each other as possible (the greedy form).

Aljundi et al., NeurIPS 2019, arXiv 1903.08671. A sample's score c is 1 + the largest cosine between its gradient and
those of `batch_num` random batches from memory: 0 to 2, low for new information.

    memory not full   the sample is stored with its score                                  -> `utils.memory.gss`
    full, c < 1       a candidate i is drawn in proportion to its score s_i,
                      and replaced with probability s_i / (s_i + c)

Choices: --gss_gradients all takes the gradient of every parameter, in chunks of samples; classifier that of the last
linear layer, which has a closed form. Gradients are taken in eval mode, on images without augmentation, after the step.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model gss --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, one_hot

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, positive_int
from utils.memory.gss import Buffer
from utils.pair import Pair
from utils.passes import normalized

CHUNK = 8  # samples whose gradients are in memory at once, while they are made


class Gss(ContinualModel):
    NAME = "gss"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument(
            "--batch_num", type=positive_int, default=1, help="memory batches that a sample is compared with"
        )
        parser.add_argument(
            "--gss_minibatch_size", type=positive_int, help="size of these batches (default: minibatch_size)"
        )
        parser.add_argument(
            "--gss_gradients", choices=["classifier", "all"], default="classifier", help="parameters in the gradients"
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        size = args.gss_minibatch_size or args.minibatch_size
        self.buffer = Buffer(args.buffer_size, self.device, size, self, args.batch_num)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        x, y = inputs, labels
        if not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            x, y = torch.cat((inputs, old)), torch.cat((labels, old_labels))
        loss = self.loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.detach()

    def gradients(self, images, labels):
        """(B, P) gradient of the cross-entropy of each plain image, in eval mode."""
        training = self.net.training
        self.net.eval()
        found = self.gradients_in_eval(normalized(images, self.normalization_transform), labels)
        self.net.train(training)
        return found

    def gradients_in_eval(self, inputs, labels):
        if self.args.gss_gradients == "classifier":
            with torch.no_grad():
                logits, features = self.net(inputs, returnt="both")
                error = logits.softmax(1) - one_hot(labels, logits.shape[1])  # (B, C)
                features = torch.cat([features.flatten(1), features.new_ones(len(features), 1)], dim=1)  # the bias last
                return torch.einsum("bc,bd->bcd", error, features).flatten(1)
        weights = {n: p.detach() for n, p in self.net.named_parameters() if p.requires_grad}
        parts = (inputs.image, inputs.text) if isinstance(inputs, Pair) else (inputs,)

        def loss(weights, label, *one):
            x = Pair(one[0][None], one[1][None]) if len(one) == 2 else one[0][None]
            return cross_entropy(functional_call(self.net, weights, (x,)), label[None])

        each = vmap(grad(loss), in_dims=(None, 0, *(0 for _ in parts)), chunk_size=CHUNK)(weights, labels, *parts)
        return torch.cat([g.flatten(1) for g in each.values()], dim=1)
