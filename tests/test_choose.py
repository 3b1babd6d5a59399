"""scripts/choose.py: the same budget for all, another seed's validation images, and edits that keep the rest."""

import json

import pytest
import yaml

from scripts import choose, claims
from utils import cli
from utils.errors import UserError

SPACE = """
trials: 5
seed: 77
world: --dataset seq-tiny --picture_seed {seed} --validation 0.2 --device cpu
score: class_il_last
default:
  lr: {times: 10}
methods:
  ncm: {text_weight: [0, 0.1, 0.5]}
  slda: {shrinkage: {low: 0.0001, high: 0.5}}
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def put(folder, job, score, status="done"):
    """A record of a finished job."""
    place = folder / job.arm.replace(", ", "-").replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    start = {"type": "start", "config_hash": job.config, "args": {"model": "m", "dataset": "seq-tiny", "seed": 77}}
    end = {"type": "end", "status": status, "summary": {"class_il_last": score}}
    (place / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (start, end)))


def test_every_method_has_as_many_trials_and_the_first_is_what_is_used_now(space):
    found = choose.read_space(space)
    for model, flag, low, high in (
        ("slda", "shrinkage", 1e-4, 0.5),
        ("er", "lr", 0.003, 0.3),
        ("proof", "lr", 1e-3, 0.1),
    ):
        trials = choose.trials_of(model, found)
        assert len(trials) == 5 and all(set(values) == {flag} for values in trials)
        args = cli.parse(choose.argv_of(model, found, {})).args
        assert trials[0][flag] == getattr(args, flag)
        assert all(low <= values[flag] <= high for values in trials) and len({v[flag] for v in trials}) > 3
        assert trials == choose.trials_of(model, found), "draws depend on the seed and the method alone"
    assert choose.trials_of("er", found)[1:] != choose.trials_of("sgd", found)[1:]
    assert {v["text_weight"] for v in choose.trials_of("ncm", found)} <= {0, 0.1, 0.5}
    assert choose.trials_of("clip", found) == [], "zero-shot has nothing to choose"


def test_trials_see_validation_images_of_another_seed(space):
    found = choose.read_space(space)
    for values, job in choose.jobs_of("er", found, space.parent):
        args = cli.parse(job.argv).args
        assert (args.seed, args.picture_seed, args.validation, args.lr) == (77, 77, 0.2, values["lr"])
        assert args.buffer_size == 500, "from the block of --model_config best"
    assert len({job.config for _, job in choose.jobs_of("er", found, space.parent)}) == 5


def test_the_real_space_is_understood_for_all_its_methods():
    found = choose.read_space(choose.SPACE)
    for model in found.methods:
        assert set(found.methods[model]) <= set(choose.present_values(model, found))


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "slda.yaml"
    monkeypatch.setattr(choose, "config_file", lambda model: path)
    return path


def test_the_best_is_written_once_and_finished_trials_are_not_run_again(space, config, tmp_path, monkeypatch, capsys):
    launched = []

    def launch(jobs, results, at_once):
        launched.append(len(jobs))
        for number, job in enumerate(jobs):
            assert "--validation" in job.argv
            put(results, job, [50.0, 70.0, 90.0, 70.0, 60.0][number], "done" if number != 2 else "failed")
        return 1

    monkeypatch.setattr(claims, "launch", launch)
    argv = ["slda", "clip", "--space", str(space), "--results_path", str(tmp_path / "runs")]
    assert choose.main(argv) == 1 and not config.exists()
    told = capsys.readouterr().out
    assert "clip: nothing to choose" in told and "| 5 | 1 |" in told and "| 70.0 |" in told
    assert choose.main([*argv, "--write", "--jobs", "0"]) == 0
    found = choose.read_space(space)
    second = choose.trials_of("slda", found)[1]
    assert yaml.safe_load(config.read_text())["default_for"] == {"seq-tiny": second}
    assert "best of 5 trials on validation images, seed 77: scripts/choose.py" in config.read_text()
    assert launched == [5]
    choose.main(argv)
    assert launched == [5, 1], "the trial that failed, alone"


def test_of_equal_scores_the_present_values_stay():
    outcome = choose.Outcome([({"lr": 1}, 60.0), ({"lr": 2}, 60.0), ({"lr": 3}, None)])
    assert outcome.best == ({"lr": 1}, 60.0) and choose.Outcome([({"lr": 1}, None)]).best is None


FILES = {
    "": {"default": {}, "default_for": {"seq-tiny": {"lr": 0.5}}},
    "default: {}\nseq-cub200: {lr: 1}\n": {
        "default": {}, "seq-cub200": {"lr": 1}, "default_for": {"seq-tiny": {"lr": 0.5}}},
    "# head\ndefault: {}\ndefault_for:  # why\n  seq-tiny: {lr: 0.1, n_epochs: 2}\nseq-cub200: {lr: 1}  # kept\n": {
        "default": {}, "default_for": {"seq-tiny": {"lr": 0.5, "n_epochs": 2}}, "seq-cub200": {"lr": 1}},
    "default_for:\n  seq-tiny: &world\n    lr: 0.1\n    ctx: 4\n  seq-tiny-far: *world\n": {
        "default_for": {"seq-tiny": {"lr": 0.5, "ctx": 4}, "seq-tiny-far": {"lr": 0.5, "ctx": 4}}},
    "default: {}\nseq-tiny: {lr: 0.1, buffer_size: 500}\nseq-tinyimg: {lr: 3}\n": {
        "default": {}, "seq-tiny": {"lr": 0.5, "buffer_size": 500}, "seq-tinyimg": {"lr": 3}},
}  # fmt: skip


@pytest.mark.parametrize("text", FILES, ids=["none", "other", "inline", "anchor", "best"])
def test_only_the_block_changes(text):
    found = choose.written(text, "seq-tiny", {"lr": 0.5}, "chosen here")
    assert yaml.safe_load(found) == FILES[text] and found.count("# chosen here") == 1
    for comment in ("# head", "# why", "# kept"):
        assert (comment in found) == (comment in text)
    assert choose.written(found, "seq-tiny", {"lr": 0.5}, "chosen here") == found


def test_a_file_that_would_change_elsewhere_is_refused():
    with pytest.raises(UserError, match="by hand"):
        choose.written("seq-tiny: {lr: 1\n}\nseq-cub200: {lr: 1}\n", "seq-tiny", {"lr": 0.5}, "x")


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("trials: 5\n", "", "trials"),
        ("{times: 10}", "{times: 1}", "no range"),
        ("{low: 0.0001, high: 0.5}", "{low: 1, high: 0.5}", "no range"),
        ("  slda:", "  sdla:", "no method sdla"),
    ],
)
def test_a_wrong_space_is_a_line(space, capsys, old, new, told):
    space.write_text(SPACE.replace(old, new))
    assert choose.main(["slda", "--space", str(space), "--results_path", str(space.parent)]) == 2
    assert told in capsys.readouterr().err
