"""What MulKI's distillation is worth on the picture world: data sets not trained yet are kept better than by fine-tuning."""

import pytest

from tests.conftest import newest_record


def future(data, results, model, order, *more):
    """Mean accuracy on the data sets still to come, each among its own names, after three tasks of mtil-tiny."""
    import main

    assert (
        main.main(
            [
                "--model",
                model,
                "--dataset",
                "mtil-tiny",
                "--mtil_order",
                order,
                "--stop_after",
                "2",
                "--seed",
                "1992",
                "--fitting_mode",
                "iters",
                "--n_iters",
                "60",
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
                *more,
            ]
        )
        == 0
    )
    row = [r for r in newest_record(results) if r["type"] == "task"][-1]["scores"]["task_il"]
    return sum(row[3:]) / len(row[3:])


@pytest.mark.slow  # four runs of three tasks
@pytest.mark.parametrize("order", ["I", "II"])
def test_transfer_is_above_fine_tuning(tmp_path, order):
    held = future(tmp_path / "data", tmp_path / "held", "mulki", order)
    tuned = future(tmp_path / "data", tmp_path / "tuned", "finetune-clip", order)
    print(order, held, tuned)
    assert held > tuned + 2
