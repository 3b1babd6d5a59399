"""A run that is killed at any moment and continued gives the same numbers, bit for bit."""

import os
import signal

import numpy as np
import pytest

from tests import contract
from tests.conftest import comparable, in_child, newest_record
from utils.engine.run import Run

COMMANDS = {
    "er": ["--model", "er", "--buffer_size", "40", "--lr", "0.05", "--optim_mom", "0.9"],
    "derpp": ["--model", "derpp", "--buffer_size", "40", "--alpha", "0.3", "--beta", "0.5", "--lr", "0.05"],
    "icarl": ["--model", "icarl", "--buffer_size", "40", "--lr", "0.2"],
    "joint": ["--model", "joint", "--lr", "0.1"],
}
COMMON = ["--dataset", "seq-mnist", "--n_epochs", "2", "--batch_size", "16", "--seed", "3", "--lr_scheduler", "cosine"]


def run(argv: list[str], data, results, autosave: str) -> int:
    import main

    return main.main(
        [
            *argv,
            *COMMON,
            "--base_path",
            str(data),
            "--results_path",
            str(results),
            "--non_verbose",
            "1",
            "--device",
            "cpu",
            "--autosave",
            autosave,
            "--resume",
            "auto",
        ]
    )


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(moment: str, count: int):
    """Patch this process so that it dies in the `count`-th step, end of task, or in the middle of a checkpoint."""
    from models.utils.continual_model import ContinualModel
    from utils.engine import checkpoint, training
    from utils.engine.autosave import Saver

    seen = {"n": 0}

    def counted(function):
        def wrapper(*args, **kwargs):
            seen["n"] += 1
            return die() if seen["n"] == count else function(*args, **kwargs)

        return wrapper

    if moment == "step":
        ContinualModel.meta_observe = counted(ContinualModel.meta_observe)
    elif moment == "end_task":
        ContinualModel.meta_end_task = counted(ContinualModel.meta_end_task)
    elif moment == "evaluation":
        training.evaluate_tasks = counted(training.evaluate_tasks)
    elif moment == "half-written checkpoint":
        real = checkpoint._write_safetensors

        def half(file, entries, metadata):
            seen["n"] += 1
            if seen["n"] == count:
                file.write(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
                file.flush()
                die()
            real(file, entries, metadata)

        checkpoint._write_safetensors = half
        Saver.due = lambda self: self.wait() is None  # a file after every step, however fast the disk is


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_runs_end_like_the_uninterrupted_one(name, data, tmp_path):
    argv = COMMANDS[name]
    assert in_child(lambda: run(argv, data, tmp_path / "whole", "60")) == 0
    whole = newest_record(tmp_path / "whole")

    killed = tmp_path / "killed"
    random = np.random.default_rng(sum(map(ord, name)))
    moments = [
        ("step", int(random.integers(2, 12))),
        ("half-written checkpoint", int(random.integers(3, 9))),
        ("end_task", 2),
        ("evaluation", 2),
        ("step", int(random.integers(4, 10))),
    ]
    if name == "joint":  # it makes no step in the loop
        moments = [("half-written checkpoint", int(random.integers(3, 6))), ("end_task", 2), ("evaluation", 2)]
    deaths = 0
    for moment, count in moments:
        status = in_child(lambda m=moment, c=count: (killed_at(m, c), run(argv, data, killed, "0.0001")))
        deaths += os.WIFSIGNALED(status)
    assert deaths >= 3
    assert in_child(lambda: run(argv, data, killed, "60")) == 0
    assert len(list(killed.glob("*/*/*"))) == 1, "every process went on with the same run"
    record = newest_record(killed)
    assert [comparable(r) for r in record if r["type"] in {"task", "end"}] == [
        comparable(r) for r in whole if r["type"] in {"task", "end"}
    ]


def test_losses_that_wait_on_a_device_are_in_the_checkpoint(data, tmp_path):
    """On a GPU losses are read a few at a time; those not read yet count after a kill within the epoch."""
    from utils.engine import training

    def waiting(results, autosave, at=None):
        guard = training.LossGuard

        def slow(device):
            made = guard(device)
            made.every = 20
            return made

        training.LossGuard = slow
        if at:
            killed_at("half-written checkpoint", at)  # a save after every step
        return run(COMMANDS["er"] + ["--stop_after", "0"], data, results, autosave)

    assert in_child(lambda: waiting(tmp_path / "whole", "60")) == 0
    assert os.WIFSIGNALED(in_child(lambda: waiting(tmp_path / "killed", "0.0001", 3)))
    assert in_child(lambda: waiting(tmp_path / "killed", "60")) == 0
    whole, killed = (newest_record(tmp_path / name)[1] for name in ("whole", "killed"))
    assert len(whole["loss"]) == 2 and killed["loss"] == whole["loss"]


def test_killed_before_the_first_save_starts_over(data, tmp_path):
    argv = COMMANDS["er"]
    assert os.WIFSIGNALED(in_child(lambda: (killed_at("step", 3), run(argv, data, tmp_path, "60"))))
    assert [r["type"] for r in newest_record(tmp_path)] == ["start"]
    assert in_child(lambda: run(argv, data, tmp_path, "60")) == 0
    assert newest_record(tmp_path)[-1]["status"] == "done"
    assert len(list(tmp_path.glob("*/*/*"))) == 1


def test_a_finished_run_is_reported_not_repeated(data, tmp_path, capfd):
    argv = COMMANDS["er"]
    assert in_child(lambda: run(argv, data, tmp_path, "60")) == 0
    before = newest_record(tmp_path)
    assert in_child(lambda: (killed_at("step", 1), run(argv, data, tmp_path, "60"))) == 0
    assert newest_record(tmp_path) == before
    assert "already finished" in capfd.readouterr().out


def test_another_configuration_is_another_run(data, tmp_path):
    argv = COMMANDS["er"]
    in_child(lambda: (killed_at("step", 9), run(argv, data, tmp_path, "0.0001")))
    assert in_child(lambda: run([*argv, "--optim_wd", "0.001"], data, tmp_path, "60")) == 0
    assert len(list(tmp_path.glob("*/*/*"))) == 2


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_so(number, code, data, tmp_path):
    from models.utils.continual_model import ContinualModel

    def interrupted():
        real, seen = ContinualModel.meta_observe, []

        def observe(self, *args, **kwargs):
            seen.append(1)
            if len(seen) == 5:
                os.kill(os.getpid(), number)
            return real(self, *args, **kwargs)

        ContinualModel.meta_observe = observe
        os._exit(run(COMMANDS["er"], data, tmp_path, "60"))

    assert os.waitstatus_to_exitcode(in_child(interrupted)) == code
    assert newest_record(tmp_path)[-1]["status"] == "interrupted"
    assert list(tmp_path.glob("*/*/*/ckpt/auto.safetensors"))
    assert in_child(lambda: run(COMMANDS["er"], data, tmp_path, "60")) == 0
    assert in_child(lambda: run(COMMANDS["er"], data, tmp_path / "whole", "60")) == 0
    assert comparable(newest_record(tmp_path)[-1]) == comparable(newest_record(tmp_path / "whole")[-1])


def test_signal_outside_the_batch_loop_stops_at_once(data, tmp_path):
    from models.joint import Joint

    def interrupted():
        def stuck(self, dataset):
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass

        Joint.end_task = stuck
        signal.alarm(20)
        os._exit(run(COMMANDS["joint"], data, tmp_path, "60"))

    assert os.waitstatus_to_exitcode(in_child(interrupted)) == 143


def test_forward_passes_count_over_all_processes_of_a_run():
    with contract.toys():
        models = [contract.build("clumo", "toy-pairs").model for _ in range(2)]
    killed, resumed = (Run(m, m.args, None, {}) for m in models)
    models[0].store.not_kept, models[0].questions.not_kept, models[0].forward_counter.images = 30, 7, 5
    saved = killed.state({"task": 0})
    models[1].store.not_kept = 2  # before the saved state was read
    resumed.restore(saved)
    assert resumed.forwards() == killed.forwards() == {"image_forwards": 35, "question_forwards": 7}
    models[1].store.not_kept += 3
    models[1].forward_counter.images += 1
    assert resumed.forwards() == {"image_forwards": 39, "question_forwards": 7}


@pytest.mark.parametrize("features", ["disk", "ram"])
@pytest.mark.parametrize("name", ["cgil", "clumo", "l2p"])
def test_a_killed_run_counts_the_images_of_the_uninterrupted_one(name, features, tmp_path):
    """A killed process may leave features on disk or not; neither changes the forwards that the run is charged for."""

    def run(base: str, autosave: str) -> int:
        stream = "toy-pairs" if name == "clumo" else "toy-class-il"
        argv = contract.argv_of(name, stream)
        for flag, value in (("--base_path", base), ("--disable_log", "0")):
            argv[argv.index(flag) + 1] = str(tmp_path / base) if flag == "--base_path" else value
        import main

        with contract.toys():
            return main.main(
                [
                    *argv,
                    "--results_path",
                    str(tmp_path / base / "runs"),
                    "--autosave",
                    autosave,
                    "--resume",
                    "auto",
                    "--features",
                    features,
                ]
            )

    assert in_child(lambda: run("whole", "60")) == 0
    for moment, count in (("step", 2), ("end_task", 1), ("evaluation", 3), ("step", 4), ("end_task", 1)):
        in_child(lambda m=moment, c=count: (killed_at(m, c), run("killed", "0.0001")))
    assert in_child(lambda: run("killed", "60")) == 0
    rows = [
        [comparable(r) for r in newest_record(tmp_path / p / "runs") if r["type"] in {"task", "end"}]
        for p in ("whole", "killed")
    ]
    assert rows[0] == rows[1] and rows[0][-1]["summary"]["image_forwards"] > 80
