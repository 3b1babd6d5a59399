"""Joint training on the data of all tasks, after the last one has arrived: the upper bound.

`--joint 1` with any model is the other form: the stream itself is then a single task. This one also serves streams
whose tasks share their classes.
"""

from models.utils.continual_model import ContinualModel


class Joint(ContinualModel):
    NAME = "joint"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.joint_epochs, args.n_epochs = (1 if args.debug_mode else args.n_epochs), 0  # the loop itself trains nothing

    def end_task(self, dataset):
        if self.current_task < dataset.N_TASKS - 1:
            return
        first, *others = dataset.all_loaders()[0]
        loader = first.joined(others)
        limit = self.get_debug_iters() if self.args.debug_mode else len(loader)
        self.train()
        for epoch in self.work("joint training", self.joint_epochs):
            for number, (inputs, labels, *_) in enumerate(loader.epoch(epoch)):
                if number >= limit:
                    break
                loss = self.train_step(inputs.to(self.device), labels.to(self.device))
            self.work_note = f"loss {loss:.4g}"

    def train_step(self, inputs, labels):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return 0.0
