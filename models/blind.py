"""What can be answered without looking: the most frequent answer to each question, or of all.

A control for streams of questions, not a method: a score below it uses neither image nor question. Answers of all past
tasks are counted, so it cannot forget. --reads nothing gives the majority answer; a question that was never asked gets
that one, too. On images alone there is no question, and both are the same.

Row of docs/clumo.md, by scripts/claims.py clumo, one seed:
    python main.py --model blind --dataset clove-tiny-rules --device cpu --seed 0 --picture_seed 0
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.flags import LOOP_FLAGS
from utils.pair import Pair


class Blind(ContinualModel):
    NAME = "blind"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    BUILDS_OWN_NET = True  # none
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    NOT_TRIED = {"reads": "needs a stream with questions; tests/test_blind.py"}

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--reads", choices=["question", "nothing"], default="question", help="what the answer uses")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(None, loss, args, transform, dataset)
        self.register_buffer("asked", torch.zeros(0, 0, dtype=torch.long, device=self.device))  # (Q, L)
        self.register_buffer("counts", torch.zeros(0, self.num_classes, device=self.device))  # (Q, C)

    def get_parameters(self):
        return []

    def questions(self, text, n):
        """Token ids (n, L) of what is read; nothing is the same question for all."""
        return torch.zeros(n, 1, dtype=torch.long) if text is None or self.args.reads == "nothing" else text

    def end_task(self, dataset):
        split = dataset.train_loader.dataset
        known = split.targets >= 0
        asked = self.questions(getattr(getattr(split.samples, "data", None), "text", None), len(split.samples))
        asked = asked[split.rows[known]].to(self.device)
        labels = split.targets[known].to(self.device)
        old = self.asked if len(self.asked) else asked[:0]
        self.asked, place = torch.cat([old, asked]).unique(dim=0, return_inverse=True)
        counts = self.counts.new_zeros(len(self.asked), self.num_classes).index_add_(0, place[: len(old)], self.counts)
        self.counts = counts.index_put_((place[len(old) :], labels), counts.new_ones(len(labels)), accumulate=True)

    def forward(self, x):
        """Counts (B, C) of the answers to each question; ties and new questions by the share among all answers."""
        everything = self.counts.sum(0) / (self.counts.sum() + 1)
        asked = self.questions(x.text.cpu() if isinstance(x, Pair) else None, len(x)).to(self.device)
        if not len(self.asked) or self.asked.shape[1] != asked.shape[1]:
            return everything.expand(len(x), -1)
        same = torch.cat([self.asked, asked]).unique(dim=0, return_inverse=True)[1]
        place = torch.full((int(same.max()) + 1,), -1, device=self.device)
        place[same[: len(self.asked)]] = torch.arange(len(self.asked), device=self.device)
        place = place[same[len(self.asked) :]]
        return torch.where(place[:, None] >= 0, self.counts[place], 0) + everything
