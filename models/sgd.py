"""Plain fine-tuning on each task in turn: the lower bound.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model sgd --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.utils.continual_model import ContinualModel


class Sgd(ContinualModel):
    NAME = "sgd"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.detach()
