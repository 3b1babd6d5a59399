"""Effect of MulKI's distillation on the picture world: it preserves future domains better than fine-tuning does."""

import pytest

from tests.conftest import newest_record


def future(data, results, model):
    """Mean accuracy on future domains, each among its own names, after two tasks of mtil-tiny in order II."""
    import main

    assert (
        main.main(
            [
                "--model",
                model,
                "--dataset",
                "mtil-tiny",
                "--mtil_order",
                "II",
                "--stop_after",
                "1",
                "--seed",
                "1992",
                "--fitting_mode",
                "iters",
                "--n_iters",
                "100",
                "--batch_size",
                "32",
                "--lr",
                "0.0002",
                "--augment",
                "0",
                "--eval_future",
                "1",
                "--device",
                "cpu",
                "--non_verbose",
                "1",
                "--autosave",
                "0",
                "--base_path",
                str(data),
                "--results_path",
                str(results),
            ]
        )
        == 0
    )
    row = [r for r in newest_record(results) if r["type"] == "task"][-1]["scores"]["task_il"]
    return sum(row[2:]) / len(row[2:])


@pytest.mark.slow  # two runs of two tasks
def test_transfer_is_above_fine_tuning(tmp_path):
    held, tuned = (future(tmp_path / "data", tmp_path / m, m) for m in ("mulki", "finetune-clip"))
    print(held, tuned)  # 70.4 and 62.9 when this was written
    assert held > tuned + 3
