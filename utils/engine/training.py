"""The training loop: tasks, epochs, batches; evaluation after each task; how a run starts, ends and resumes."""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import ranks
from utils.engine import metrics, report
from utils.engine.evaluate import evaluate_mixed, evaluate_tasks
from utils.engine.probes import Probes
from utils.engine.record import RunRecord
from utils.engine.run import MID_TASK, TASK_END, LossGuard, Run
from utils.engine.state_names import load_scheduler, one_line
from utils.errors import Interrupted, UserError
from utils.precision import set_speed
from utils.progress import progress
from utils.schedulers import get_scheduler
from utils.settings import SPLIT_SETTINGS, option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel


def train(
    model: ContinualModel,
    dataset: ContinualDataset,
    args: Namespace,
    record: RunRecord | None = None,
    resume: Path | None = None,
) -> dict[str, float]:
    """Train on all tasks, evaluating after each; returns the summary that ends the record. `resume` is the folder of a
    run to continue."""
    set_speed(args, model)
    rows = {
        name: np.full((dataset.N_TASKS, dataset.N_TASKS), np.nan)
        for name in ("class_il", "task_il", "all_names", "unseen_names", "exact_match")
    }
    run = Run(model, args, record, {"matrices": rows}, resume)
    model.run = run
    model.to(model.device)
    try:
        with run.signals():
            return _train_tasks(run, model, dataset, resume is not None)
    except Interrupted as stop:
        if record:
            record.end({"status": "interrupted", "summary": {}, "signal": stop.exit_code - 128})
        where = f"; --resume auto continues {record.folder}" if record and args.autosave else ""
        print(f"stopped by signal {stop.exit_code - 128}{where}", file=sys.stderr)
        raise
    except BaseException as error:
        if record:
            record.end({"status": "failed", "error": f"{type(error).__name__}: {error}", "summary": {}})
        raise
    finally:
        run.leave()
        model.run = None


def _train_tasks(run: Run, model: ContinualModel, dataset: ContinualDataset, resume: bool) -> dict[str, float]:
    args = run.args
    if option(args, "mixed_batches") and dataset.SETTING not in SPLIT_SETTINGS:
        raise UserError(f"--mixed_batches 1 needs tasks with classes of their own; {dataset.NAME} is {dataset.SETTING}")
    first, last = option(args, "start_from", 0), option(args, "stop_after", dataset.N_TASKS - 1)
    mid, done = (run.saved(MID_TASK), run.saved(TASK_END)) if resume else (None, None)
    if mid and done and mid["position"]["task"] <= done["position"]["task"]:
        mid = None
    begun_at = done["position"]["task"] + 1 if done else first
    _skip_to(model, dataset, begun_at, replay_hooks=done is None and not option(args, "loadcheck"))
    if done:
        run.restore(done)
    looks_ahead = wants_future(model, dataset, args)
    future = dataset.all_loaders(getattr(model, "change_transform", None))[1] if looks_ahead else None
    with run.watch.phase("evaluate"):
        _forward_baseline(run, model, dataset)
    probes = Probes(run, model, dataset) if option(args, "probe") else None
    if probes is not None:
        probes.start()
    for task in range(begun_at, last + 1):
        _one_task(run, model, dataset, task, mid if mid and mid["position"]["task"] == task else None)
        seen = None
        if task == last or is_scored(args, task):
            with run.watch.phase("evaluate"):
                seen = _evaluate(run, model, dataset, task, future)
        if probes is not None:
            probes.after_task()
        _write_row(run, model, dataset, task, seen)
        run.keep(task, last=task == last)
        run.save(TASK_END, {"task": task, "phase": "done", "epoch": 0, "batch": 0})
        ranks.compare({"the weights": ranks.bits(model.state_dict())}, f"task {task + 1}: run on one kind of machine")
        run.stop_asked()
        run.stop_if_asked()
    run.saver.wait()
    return _finish(run, model, dataset)


def is_scored(args: Namespace, task: int) -> bool:
    """Whether --eval_every and --eval_final ask for scores after a task that is not the last."""
    return not option(args, "eval_final") and (task + 1) % option(args, "eval_every", 1) == 0


def wants_future(model: ContinualModel, dataset: ContinualDataset, args: Namespace) -> bool:
    """--eval_future, or by default what the method and the stream are designed for."""
    if option(args, "eval_future") is not None or dataset.N_TASKS == 1 or not hasattr(model, "future_forward"):
        return bool(option(args, "eval_future"))
    return dataset.MTIL or (model.LOOKS_AHEAD and dataset.SETTING in SPLIT_SETTINGS)


def _skip_to(model: ContinualModel, dataset: ContinualDataset, first: int, replay_hooks: bool) -> None:
    """Advance the stream to the first task to train; without a saved state the hooks see the skipped tasks."""
    for _ in range(first):
        dataset.get_data_loaders()
        if replay_hooks:
            model.meta_begin_task(dataset)
            model.meta_end_task(dataset)
        elif callable(change := getattr(model, "change_transform", None)):
            change(dataset)  # of test sets that will be evaluated again


def _one_task(run: Run, model: ContinualModel, dataset: ContinualDataset, task: int, saved: dict | None) -> None:
    """Begin, fit and end one task; `saved` is a state within it to resume from."""
    model.train()
    dataset.get_data_loaders()
    run.watch.phases.clear()
    run.position = {"task": task, "phase": "train", "epoch": 0, "batch": 0}
    run.loop_state = {}
    scheduler = _begin(run, model, dataset) if saved is None else _go_on(run, model, dataset, saved)
    if run.position["phase"] == "train" and trains(model, run.args):
        with run.watch.phase("train"), run.polling():
            Fit(run, model, dataset, scheduler).run_task()
    with run.polling():
        if run.watch.phases.get("train", 0) > 1:
            run.save(MID_TASK, run.position | {"phase": "end"})
        run.tick(phase="end")
    with run.watch.phase("end_task"):
        model.meta_end_task(dataset)


def _begin(run: Run, model: ContinualModel, dataset: ContinualDataset) -> Any:
    """Start a task; returns its scheduler."""
    with run.watch.phase("begin_task"):
        model.meta_begin_task(dataset)
    return _scheduler(model, run.args)


def _go_on(run: Run, model: ContinualModel, dataset: ContinualDataset, saved: dict) -> Any:
    """Restore the state `saved` within a task; returns its scheduler."""
    if model.touches_task_start():
        with run.watch.phase("begin_task"):
            model.meta_begin_task(dataset)  # for its effect on the loaders: its changes to the model are overwritten
    model.opt = model.opt or model.get_optimizer()
    scheduler = _scheduler(model, run.args)
    run.restore(saved)
    if scheduler is not None and "scheduler" in run.loop_state:
        with one_line():
            load_scheduler(scheduler, run.loop_state["scheduler"], "the schedule")
    if hasattr(dataset.train_loader, "passes"):
        dataset.train_loader.passes = run.loop_state.get("passes", 0)
    return scheduler


def trains(model: ContinualModel, args: Namespace) -> bool:
    """Whether the loop takes any gradient steps."""
    steps = args.fitting_mode == "iters" or bool(args.n_epochs)
    return steps and model.trains_in_loop and not option(args, "inference_only")


def _scheduler(model: ContinualModel, args: Namespace) -> Any:
    if hasattr(model, "scheduler"):
        return getattr(model, "custom_scheduler", None) or model.scheduler
    return get_scheduler(model, args, reload_optim=False)


class Fit:
    """The epochs of one task."""

    def __init__(self, run: Run, model: ContinualModel, dataset: ContinualDataset, scheduler: Any) -> None:
        self.run, self.model, self.dataset, self.scheduler, self.args = run, model, dataset, scheduler, run.args
        self.loader = dataset.train_loader
        self.task = run.position["task"]
        self.guard = LossGuard(model.device)
        self.guard.sum, self.guard.count = run.loop_state.get("epoch_loss", [0.0, 0])
        self.limit = model.get_debug_iters() if self.args.debug_mode else None

    def n_epochs(self) -> int:
        if self.args.debug_mode:
            return 1
        if self.args.fitting_mode == "iters":
            return -(-int(self.args.n_iters) // max(1, self.batches()))
        return int(self.args.n_epochs)

    def batches(self) -> int:
        count = len(self.loader) if hasattr(self.loader, "__len__") else sys.maxsize
        return count if self.limit is None else min(count, self.limit)

    def run_task(self) -> None:
        position, epochs = self.run.position, self.n_epochs()
        length = (
            min(epochs * self.batches(), self.args.n_iters or sys.maxsize)
            if self.args.fitting_mode == "iters"
            else epochs * self.batches()
        )
        title = f"task {self.task + 1}/{self.dataset.N_TASKS}"
        done = position["epoch"] * self.batches() + position["batch"]
        with progress(title, length, self.args, done) as bar:
            for epoch in range(position["epoch"], epochs):
                start = position["batch"] if epoch == position["epoch"] else 0
                if start == 0:
                    self.model.meta_begin_epoch(epoch, self.dataset)
                finished = self.run_epoch(epoch, start, epochs, bar)
                if self.scheduler is not None and self.args.scheduler_mode == "epoch":
                    self.scheduler.step()
                self.model.meta_end_epoch(epoch, self.dataset)
                stop = self.should_stop(epoch) or finished
                self.note(epoch)
                if stop:
                    break
                self.tick(epoch + 1, 0)
        self.restore_best()

    def run_epoch(self, epoch: int, start: int, epochs: int, bar: Any) -> bool:
        """One pass from batch `start`; true once the task's iterations are used up."""
        for batch, data in enumerate(self.iterate(epoch, start), start):
            if self.limit is not None and batch >= self.limit:
                break
            loss = self.step(data, epoch)
            self.guard.push(loss, (self.task, epoch, batch))
            if self.scheduler is not None and self.args.scheduler_mode == "iter":
                self.scheduler.step()
            if bar.update(1):
                bar.set_postfix_str(f"epoch {epoch + 1}/{epochs} loss {self.guard.last:.4g}", refresh=False)
            if self.args.fitting_mode == "iters" and self.model.task_iteration >= self.args.n_iters:
                self.end_epoch()
                return True
            self.tick(epoch, batch + 1)
        self.end_epoch()
        return False

    def end_epoch(self) -> None:
        """The mean loss of the epoch, for the record."""
        self.guard.flush()
        if self.guard.count:
            self.run.loop_state.setdefault("loss", []).append(self.guard.sum / self.guard.count)
        self.guard.sum, self.guard.count = 0.0, 0

    def iterate(self, epoch: int, start: int) -> Iterator[tuple]:
        if hasattr(self.loader, "epoch"):
            batches: Iterator[tuple] = self.loader.epoch(epoch, start)
            return batches
        iterator: Iterator[tuple] = iter(self.loader)
        for _ in range(start):
            next(iterator)
        return iterator

    def step(self, data: tuple, epoch: int) -> Any:
        device = self.model.device
        inputs, labels, not_aug = data[0].to(device), data[1].to(device).long(), data[2].to(device)
        names = getattr(self.loader.dataset, "extra_return_fields", []) if hasattr(self.loader, "dataset") else []
        extras = {name: value.to(device) for name, value in zip(names, data[3:], strict=False)}
        extras = {n: v.long() if "label" in n or "target" in n else v for n, v in extras.items()}
        result = self.model.meta_observe(inputs, labels, not_aug, epoch=epoch, **extras)
        return result["loss"] if isinstance(result, dict) else result

    def tick(self, epoch: int, batch: int) -> None:
        if self.scheduler is not None:
            self.run.loop_state["scheduler"] = self.scheduler.state_dict()
        self.run.loop_state["passes"] = getattr(self.loader, "passes", 0)
        if self.run.heartbeat.due():
            within = (epoch * self.batches() + batch) / max(1, self.n_epochs() * self.batches())
            self.run.heartbeat.beat(self.task, self.dataset.N_TASKS, within, self.guard.last)
        self.run.tick(before_save=self.note_loss, phase="train", epoch=epoch, batch=batch)

    def note_loss(self) -> None:
        """The losses of an unfinished epoch go into the checkpoint."""
        self.guard.flush()
        self.run.loop_state["epoch_loss"] = [self.guard.sum, self.guard.count]

    def should_stop(self, epoch: int) -> bool:
        """Early stopping on the validation images of the task; the best weights are kept."""
        if self.args.fitting_mode != "early_stopping" or (epoch + 1) % self.args.early_stopping_freq:
            return False
        scores = evaluate_tasks(self.model, self.dataset, {self.task: self.dataset.test_loaders[-1]})[self.task]
        by_loss = self.args.early_stopping_metric == "loss"
        value = -scores.loss / max(scores.count, 1) if by_loss else scores.percent("class_il")
        state = self.run.loop_state
        if value > state.get("best", -np.inf) + self.args.early_stopping_epsilon:
            weights = {k: v.detach().clone() for k, v in self.model.net.state_dict().items()}
            state.update(best=value, weights=weights, waited=0)
        else:
            state["waited"] += 1
        return bool(state["waited"] >= self.args.early_stopping_patience)

    def restore_best(self) -> None:
        if "weights" in self.run.loop_state:
            self.model.net.load_state_dict(self.run.loop_state.pop("weights"))

    def note(self, epoch: int) -> None:
        """--eval_epochs: scores within a task, as separate lines of the record."""
        every = option(self.args, "eval_epochs")
        if every and (epoch + 1) % every == 0 and epoch + 1 < self.n_epochs():
            scores = evaluate_tasks(self.model, self.dataset, dict(enumerate(self.dataset.test_loaders)))
            row = {"task": self.task, "epoch": epoch + 1, "class_il": [s.percent("class_il") for s in scores.values()]}
            report.print_epoch(row)
            if self.run.record:
                self.run.record.epoch(row)


def _forward_baseline(run: Run, model: ContinualModel, dataset: ContinualDataset) -> None:
    """Forward transfer is relative to the accuracy before any training."""
    if option(run.args, "enable_other_metrics") and "untrained" not in run.rows and dataset.c_task < 0:
        twin = copy.copy(dataset)
        twin.c_task = dataset.N_TASKS - 1
        scores = evaluate_tasks(model, twin, dict(enumerate(dataset.all_loaders()[1])))
        run.rows["untrained"] = np.array([s.percent("class_il") for s in scores.values()])


def _evaluate(run: Run, model: ContinualModel, dataset: ContinualDataset, task: int, future: list | None) -> dict:
    """Scores into the matrices, and end_eval; returns those of the tasks seen."""
    loaders = dict(enumerate(future if future else dataset.test_loaders))
    scores = evaluate_tasks(model, dataset, loaders, bool(future))
    seen = {t: s for t, s in scores.items() if t <= task}
    matrices = run.rows["matrices"]
    counts = run.rows.setdefault("counts", np.full(dataset.N_TASKS, 0.0))
    for t, score in scores.items():
        counts[t] = score.count
        if t <= task:
            matrices["class_il"][task, t] = score.percent("class_il")
            if dataset.VQA:
                matrices["exact_match"][task, t] = score.exact_match()
            for name, percent in score.by_evidence(dataset, loaders[t].dataset).items():
                matrices.setdefault(name, np.full_like(matrices["all_names"], np.nan))[task, t] = percent
        if dataset.SETTING in SPLIT_SETTINGS:
            matrices["task_il"][task, t] = score.percent("task_il")
        matrices["all_names"][task, t] = score.percent("all_names")
        matrices["unseen_names"][task, t] = score.percent("unseen_names")
        for name, percent in score.variants.items():
            empty = np.full_like(matrices["all_names"], np.nan)
            matrices.setdefault(f"all_names_{name}", empty)[task, t] = percent
    if option(run.args, "mixed_batches"):
        _evaluate_mixed(run, model, dataset, task, future)
    if option(run.args, "enable_other_metrics") and task + 1 < dataset.N_TASKS:
        twin = copy.copy(dataset)
        twin.c_task = task + 1
        upcoming = {task + 1: dataset.all_loaders()[1][task + 1]}
        run.rows.setdefault("before", {})[task + 1] = evaluate_tasks(model, twin, upcoming)[task + 1].percent(
            "class_il"
        )
    class_il, task_il = ([s.percent(n) for s in seen.values()] for n in ("class_il", "task_il"))
    model.meta_end_eval(dataset, (class_il, task_il))
    for name, percents in model.extra_scores().items():
        matrices.setdefault(name, np.full_like(matrices["all_names"], np.nan))[task, : len(percents)] = percents
    return seen


def _evaluate_mixed(run: Run, model: ContinualModel, dataset: ContinualDataset, task: int, future: list | None) -> None:
    """--mixed_batches: the same scores from batches that mix the test sets, into separate matrices."""
    matrices = run.rows["matrices"]
    scores = evaluate_mixed(model, dataset, dict(enumerate(future if future else dataset.test_loaders)), bool(future))
    for t, score in scores.items():
        for name in ("class_il", "task_il", "all_names") if t <= task else ("task_il", "all_names"):
            empty = np.full_like(matrices["all_names"], np.nan)
            matrices.setdefault(f"mixed_{name}", empty)[task, t] = score.percent(name)


def _write_row(run: Run, model: ContinualModel, dataset: ContinualDataset, task: int, seen: dict | None) -> None:
    """The line about a task; `seen` is None if it was not evaluated."""
    flat = {
        n: np.concatenate([s.flat(n).numpy() for s in (seen or {}).values()] or [np.empty(0)])
        for n in ("confidence", "correct", "prediction", "label")
    }
    run.rows["ece"] = metrics.ece(flat["confidence"], flat["correct"])
    per_class = {n: flat[n] for n in ("prediction", "label")} if seen is not None else None
    row = report.task_row(run, model, dataset, task, per_class)
    report.print_task(row, dataset.N_TASKS, dataset.VQA, report.over_images(run.args))
    if run.record:
        run.record.task(row)
        report.note_reused(run, model, task)


def _finish(run: Run, model: ContinualModel, dataset: ContinualDataset) -> dict[str, float]:
    if dataset.final_test_loaders:
        scores = evaluate_tasks(model, dataset, dict(enumerate(dataset.final_test_loaders)))
        run.rows["final_test"] = [s.percent("class_il") for s in scores.values()]
    summary = report.summary(run, model, dataset)
    if run.record:
        report.plot(run, dataset)
        run.record.end({"status": "done", "summary": summary})
        run.drop_checkpoints()
    if dataset.VQA:
        report.print_test_sets(run, dataset)
    report.print_summary(summary, run)
    return summary
