"""Checkpoints in the format of Mammoth's safe mode load with --loadcheck, or are refused in one line."""

import pytest
import torch

import main
from models.er import Er
from tests.conftest import newest_record
from utils.engine.foreign_weights import fill_weights
from utils.errors import UserError

FLAGS = ["--model", "er", "--dataset", "seq-mnist", "--lr", "0.05", "--seed", "1", "--buffer_size", "20"]


@pytest.fixture
def start(data, tmp_path, capfd):
    def run(*argv: str) -> tuple[int, list[str]]:
        capfd.readouterr()
        more = [
            "--base_path",
            str(data),
            "--results_path",
            str(tmp_path / "runs"),
            "--device",
            "cpu",
            "--non_verbose",
            "1",
        ]
        code = main.main([*FLAGS, *argv, *more])
        return code, [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]

    return run


@pytest.fixture
def finished(start, monkeypatch):
    """The model after its second task."""
    kept = []
    monkeypatch.setattr(Er, "end_task", lambda self, dataset: kept.append(self))
    assert start("--stop_after", "1")[0] == 0
    return kept[-1]


def mammoth_form(model, prefix: str = "") -> dict:
    weights = {f"{prefix}{k}": v for k, v in model.state_dict().items()}
    args = {"model": "er", "dataset": "seq-mnist", "lr": 0.05, "buffer_size": 20}
    return {
        "model": weights,
        "optimizer": model.opt.state_dict(),
        "scheduler": None,
        "args": args,
        "results": [[90.0], [95.0], {}],
        "buffer": model.buffer.serialize(),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_and_memory_are_taken_over(start, finished, tmp_path, monkeypatch, prefix):
    torch.save(mammoth_form(finished, prefix), tmp_path / "er_seq-mnist_1.pt")
    seen = []
    begin = lambda self, dataset: seen.append((self.current_task, self.n_past_classes, self))  # noqa: E731
    monkeypatch.setattr(Er, "begin_task", begin)
    assert (
        start("--loadcheck", str(tmp_path / "er_seq-mnist_1.pt"), "--start_from", "2", "--inference_only", "1")[0] == 0
    )
    assert [s[:2] for s in seen] == [(2, 4), (3, 6), (4, 8)]
    again = seen[0][2]
    for name, value in finished.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value)
    assert torch.equal(again.buffer.get_all_data()[0], finished.buffer.get_all_data()[0])
    texts = [row["text"] for row in newest_record(tmp_path / "runs") if row["type"] == "warning"]
    assert any("does not say how many samples its memory has seen" in text for text in texts)


def test_a_bare_state_dict_of_the_network(start, finished, tmp_path):
    torch.save(finished.net.state_dict(), tmp_path / "net.pth")
    assert start("--loadcheck", str(tmp_path / "net.pth"), "--stop_after", "0") == (0, [])


def test_what_does_not_fit_is_one_line(start, finished, tmp_path):
    path = tmp_path / "a.pt"
    form = mammoth_form(finished)
    form["model"]["net.classifier.weight"] = torch.zeros(7, 100)
    torch.save(form, path)
    code, told = start("--loadcheck", str(path))
    assert code == 2 and len(told) == 1 and "net.classifier.weight is (7, 100) there and (10, 100) here" in told[0]
    torch.save({"model": {}, "args": {}}, path)
    assert "does not contain weights" in start("--loadcheck", str(path))[1][0]
    path.write_bytes(b"cut off")
    assert "cannot be read as tensors and plain values" in start("--loadcheck", str(path))[1][0]


def test_weights_that_are_not_there_or_do_not_fit_change_nothing():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))

    model, other = Model(), Model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in ("net.0.bias", "net.1.running_var"):
        lacking = {k: v + 1 for k, v in other.state_dict().items() if k != name}
        with pytest.raises(UserError, match=f"lacks 1 of the network's 7 tensors, the first is {name}"):
            fill_weights(model, lacking, "a.pt")
    with pytest.raises(UserError, match=r"net.0.weight is \(4, 2\) there and \(3, 2\) here"):
        fill_weights(model, other.state_dict() | {"net.0.weight": torch.zeros(4, 2)}, "a.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fill_weights(model, other.state_dict() | {"head": torch.zeros(1)}, "a.pt") == ["head"]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
