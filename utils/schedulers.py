"""Learning-rate schedules within a task."""

import math

from torch import optim

from utils.errors import UserError


def get_scheduler(model, args, reload_optim: bool = True):
    """The schedule of --lr_scheduler for the model's optimizer, on request on a new one; None without the flag."""
    if getattr(args, "lr_scheduler", None) is None or model.opt is None:
        return None
    if reload_optim:
        model.opt = model.get_optimizer()
    if args.lr_scheduler == "multisteplr":
        if not args.lr_milestones:
            raise UserError("--lr_scheduler multisteplr needs --lr_milestones, for example 35 45")
        return optim.lr_scheduler.MultiStepLR(
            model.opt, [int(m) for m in args.lr_milestones], args.sched_multistep_lr_gamma
        )
    length = args.n_epochs
    if args.scheduler_mode == "iter":
        length = args.n_iters or args.n_epochs * len(model.dataset.train_loader)
    return optim.lr_scheduler.CosineAnnealingLR(model.opt, T_max=max(1, length))


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Learning-rate factor at a 0-based step: linear from 0 over `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, total - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class CosineSchedule(optim.lr_scheduler.LRScheduler):
    """Cosine from the initial value to almost 0 over K steps: factor cos(99 pi k / (200 (K - 1))), then 0."""

    def __init__(self, optimizer: optim.Optimizer, K: int):
        self.K = K
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        share = 0.0 if self.K <= 1 else self.last_epoch / (self.K - 1)
        factor = math.cos(0.99 * math.pi / 2 * share) if share <= 1 else 0.0  # the cosine would rise again
        return [base * factor for base in self.base_lrs]


class CosineSchedulerWithLinearWarmup(optim.lr_scheduler.LRScheduler):
    """Linear rise over `num_warmup_steps`, then a cosine to 0 at `num_training_steps`."""

    def __init__(self, optimizer: optim.Optimizer, num_warmup_steps: int, num_training_steps: int):
        self.num_warmup_steps, self.num_training_steps = num_warmup_steps, num_training_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        factor = warmup_cosine(self.last_epoch, self.num_warmup_steps, self.num_training_steps)
        return [base * factor for base in self.base_lrs]
