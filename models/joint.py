"""Joint training on the data of all tasks, after the last one has arrived: the upper bound.

`--joint 1` with any model is the other form: the stream itself is then a single task. This one also works for streams
whose tasks share their classes.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model joint --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.utils.continual_model import ContinualModel
from utils.schedulers import get_scheduler


class Joint(ContinualModel):
    NAME = "joint"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False

    def end_task(self, dataset):
        if self.current_task < dataset.N_TASKS - 1 or self.args.inference_only:
            return
        first, *others = dataset.all_loaders()[0]
        loader = first.joined(others)
        if not self.work_done:
            self.joint_scheduler = get_scheduler(self, self.args)
        self.train()
        for epoch in self.work("joint training", 1 if self.args.debug_mode else self.args.n_epochs):
            for number, (inputs, labels, *_) in enumerate(loader.epoch(epoch)):
                if self.args.debug_mode and number >= self.get_debug_iters():
                    break
                inputs = inputs.to(self.device)
                loss = self.meta_observe(
                    inputs, labels.to(self.device), inputs, epoch=epoch
                )  # without unlabeled images
                self.step_schedule("iter")
            self.step_schedule("epoch")
            self.work_loss = loss

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def step_schedule(self, moment):
        if self.joint_scheduler is not None and self.args.scheduler_mode == moment:
            self.joint_scheduler.step()
