"""The effect of CGIL's replay on the picture world: a floor without it, a ceiling with the real features."""

import pytest
import torch

from models.cgil import CGIL
from tests.conftest import newest_record


def scores(data, results, *more):
    """Accuracy over all classes seen, after the fifth task of seq-tiny."""
    import main

    assert (
        main.main(
            [
                "--model",
                "cgil",
                "--dataset",
                "seq-tiny",
                "--stop_after",
                "4",
                "--seed",
                "1992",
                "--device",
                "cpu",
                "--permute_classes",
                "1",
                "--non_verbose",
                "1",
                "--autosave",
                "0",
                "--eval_future",
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
    return newest_record(results)[-1]["summary"]["class_il_last"]


def shuffled(parts):
    """Features and labels of {class: rows} in random order."""
    x, y = torch.cat(list(parts.values())), torch.cat([torch.full((len(v),), c) for c, v in parts.items()])
    order = torch.randperm(len(x))
    return x[order], y[order]


def of_the_task_alone(self):
    own = torch.arange(self.n_past_classes, self.n_seen_classes)
    drawn = self.generator.sample(own, 256 * self.n_seen_classes // len(own))  # as many steps as with replay
    return shuffled(dict(zip(own.tolist(), drawn, strict=True)))


@pytest.mark.slow  # four runs of five tasks
def test_replay_is_worth_thirty_points_and_a_vae_nearly_the_real_features(tmp_path, monkeypatch):
    found = {kind: scores(tmp_path / "data", tmp_path / kind, "--g_models", kind) for kind in ("vae", "full_gauss")}
    with monkeypatch.context() as changed:
        changed.setattr(CGIL, "replay", of_the_task_alone)
        found["none"] = scores(tmp_path / "data", tmp_path / "none")
    kept = {}

    def fit(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        kept.update({int(c): features[labels == c] for c in labels.unique()})

    with monkeypatch.context() as changed:
        changed.setattr(CGIL, "fit", fit)
        changed.setattr(
            CGIL, "replay", lambda self: shuffled({c: x[torch.randint(len(x), (256,))] for c, x in kept.items()})
        )
        found["real"] = scores(tmp_path / "data", tmp_path / "real")
    print(found)
    for kind in ("vae", "full_gauss"):
        assert found["none"] < found[kind] - 30, found
        assert found[kind] > found["real"] - 3, found
