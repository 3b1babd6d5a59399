"""Maps of the stages, and the same before their last ReLU as an attribute of them."""

from models.utils.continual_model import ContinualModel


class DropAttend(ContinualModel):
    NAME = "drop_attend"
    COMPATIBILITY = ["class-il", "task-il"]

    def begin_task(self, dataset):
        if self.current_task == 0:
            self.net.set_return_prerelu(True)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        out, maps = self.net(inputs, returnt="full")
        raw = [m.prerelu for m in maps]
        assert all(r.shape == m.shape and bool((r < 0).any()) for r, m in zip(raw, maps))
        loss = self.loss(out, labels) + 0.01 * sum(r.pow(2).mean() for r in raw)
        loss.backward()
        self.opt.step()
        return loss.item()
