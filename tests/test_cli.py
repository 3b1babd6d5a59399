"""The command line: precedence of values, all errors reported at once, nothing imported unnecessarily."""

from argparse import ArgumentTypeError

import pytest

from utils import cli, flags
from utils.cli import configs, plugins, registry
from utils.errors import UserError

ER = ["--model", "er", "--dataset", "seq-mnist", "--buffer_size", "20", "--lr", "0.1"]


def problems(*argv) -> str:
    with pytest.raises(UserError) as error:
        cli.parse(list(argv))
    return str(error.value)


def test_precedence_low_to_high(tmp_path, monkeypatch):
    """framework < dataset < model file < model yaml < command line, and the origin of each is kept."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "er.yaml").write_text(
        "default:\n  optim_mom: 0.5\nseq-mnist:\n  optim_wd: 0.01\n  20:\n    lr: 0.3\n  50:\n    lr: 0.7\n"
    )
    real = configs.registry.search_folders
    monkeypatch.setattr(
        configs.registry, "search_folders", lambda kind: [tmp_path, *real(kind)] if kind == "model" else real(kind)
    )
    base = ["--model", "er", "--dataset", "seq-mnist", "--buffer_size", "20"]
    plain = cli.parse([*base, "--lr", "0.1"])
    assert (plain.args.batch_size, plain.origins["batch_size"]) == (64, "dataset")
    assert (plain.args.optim_mom, plain.origins["optim_mom"]) == (0.5, "er.yaml")
    assert (plain.args.optim_wd, plain.origins["optim_wd"]) == (0.0, "default")
    assert (plain.args.lr, plain.origins["lr"]) == (0.1, "command line")
    best = cli.parse([*base, "--model_config", "best"])
    assert (best.args.lr, best.args.optim_wd) == (0.3, 0.01)
    assert cli.parse([*base, "--model_config=best", "--lr=0.2", "--batch_size", "7"]).args.batch_size == 7
    (folder / "er.yaml").write_text(
        "default:\n  optim_mom: 0.5\ndefault_for:\n  seq-mnist:\n    optim_mom: 0.7\n  other:\n    lr: 9\n"
    )
    usual = cli.parse([*base, "--lr", "0.1"])
    assert (usual.args.optim_mom, usual.origins["optim_mom"]) == (0.7, "er.yaml (default for seq-mnist)")
    (folder / "er.yaml").write_text("seq-mnist:\n  20:\n    lr: 0.3\n  50:\n    lr: 0.7\n")
    assert "buffer_size 20, 50" in problems(
        "--model", "er", "--dataset", "seq-mnist", "--buffer_size", "21", "--model_config", "best"
    )


def test_underscore_and_dash_are_equal():
    args = cli.parse(
        ["--model", "er", "--dataset", "seq_mnist", "--buffer-size", "20", "--lr", "0.1", "--optim-mom=0.9"]
    ).args
    assert (args.dataset, args.buffer_size, args.optim_mom) == ("seq-mnist", 20, 0.9)


def test_minibatch_size_is_respected():
    from utils.engine.launch import fill_in

    args = cli.parse([*ER, "--minibatch_size", "4"]).args
    fill_in(args)
    assert args.minibatch_size == 4
    args = cli.parse(ER).args
    fill_in(args)
    assert args.minibatch_size == args.batch_size == 64


def test_all_mistakes_are_told_together():
    text = problems(
        "--model",
        "er",
        "--dataset",
        "seq-mnist",
        "--buffer_size",
        "-5",
        "--lr",
        "nan",
        "--batch_size",
        "0",
        "--optimizer",
        "sdg",
        "--momentun",
        "1",
        "--n_epochs",
        "2",
        "--n_epochs",
        "3",
        "--cache_path_noisy_labels",
        "x",
    )
    for part in (
        "--buffer_size: -5 is out of range",
        "--lr: nan",
        "--batch_size: 0",
        "'sdg' is not one of sgd, adam, adamw",
        "unknown flag '--momentun'",
        "--n_epochs is given twice",
        "--cache_path_noisy_labels has no files",
    ):
        assert part in text, part
    assert len(text.splitlines()) == 7


def test_mistakes_have_a_remedy():
    assert "Closest: er" in problems("--model", "err", "--dataset", "seq-mnist")
    assert "seq-mnist" in problems("--model", "er", "--dataset", "seq-minst")
    assert "--model is missing" in problems("--dataset", "seq-mnist") and "--dataset is missing" in problems(
        "--model", "er"
    )
    assert "--buffer_size is missing" in problems("--model", "er", "--dataset", "seq-mnist", "--lr", "0.1")
    assert "--optim_mom" in problems(*ER, "--optim_mon", "1")
    assert "needs a value" in problems(*ER, "--n_epochs")
    assert "takes one value" in problems(*ER, "--n_epochs", "1", "2")
    assert "does not belong to a flag" in problems("er", *ER)
    assert "resnet18" in problems(*ER, "--backbone", "resnet81")
    assert "is not an integer" in problems(*ER, "--batch_size", "3.5")
    assert "is neither true" in problems(*ER, "--joint", "maybe")
    assert "a list of integers" in problems(*ER, "--custom_task_order", "a,b")


def test_refused_flags_are_accepted_where_they_ask_for_nothing():
    assert cli.parse([*ER, "--distributed", "no", "--save_checkpoint_mode", "safe"]).args.lr == 0.1
    assert "use ddp under torchrun" in problems(*ER, "--distributed", "dp")
    assert "not one of no, ddp" in problems(*ER, "--distributed", "mpi")


def test_help_lists_the_flags_of_the_chosen_files(capsys):
    assert cli.parse(["--model", "derpp", "--dataset", "seq-mnist", "--help"]) is None
    text = capsys.readouterr().out
    for flag in ("--alpha", "--buffer_size", "--mlp_hidden_size", "--eval_future"):
        assert flag in text
    assert cli.parse(["--help"]) is None
    assert "--alpha" not in capsys.readouterr().out


def test_listing_has_a_line_for_each_name(capsys):
    assert cli.parse(["--list", "models"]) is None
    lines = capsys.readouterr().out.strip().splitlines()[1:]
    assert {line.split()[0] for line in lines} >= {"sgd", "er", "derpp", "icarl", "joint"}
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    "words, shown, hidden",
    [
        (["models", "l*"], {"lwf", "l2p", "lucir"}, {"er", "seq-tiny"}),
        (["models", "LWF*", "er_ace"], {"lwf", "lwf-clip", "er-ace"}, {"er", "l2p"}),
        (["datasets", "*-tiny"], {"seq-tiny", "mtil-tiny"}, {"seq-mnist", "er"}),
        (["backbones", "resnet??"], {"resnet18", "resnet34"}, {"reduced-resnet18", "vit"}),
        (["clip*"], {"clip", "clip-visual"}, {"er", "mulki"}),
        (["all"], {"er", "seq-tiny", "vit"}, set()),
        ([], {"er", "seq-tiny", "vit"}, set()),
    ],
)
def test_patterns_choose_what_is_listed(words, shown, hidden, capsys):
    assert cli.parse(["--list", *words]) is None
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert shown <= names and not hidden & names


def test_a_listing_says_how_many_of_all_it_shows_and_kinds_without_a_match_are_left_out(capsys):
    cli.parse(["--list", "l2p"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == f"models (1 of {len(registry.index('model'))})"


@pytest.mark.parametrize(
    "words, said", [(["modles"], "no name matches modles"), (["datasets", "zz*"], "no dataset matches zz*")]
)
def test_a_pattern_that_fits_nothing_is_told(words, said):
    assert said in problems("--list", *words)


def test_a_method_is_found_by_the_name_it_has_elsewhere(capsys):
    parsed = cli.parse(["--model", "Zero_Shot", "--dataset", "seq-tiny"])
    assert parsed.args.model == "clip" and parsed.model_class.NAME == "clip"
    assert capsys.readouterr().err.startswith("note: model zero-shot is clip here: Zero-shot CLIP")
    assert cli.parse(["--model", "ncm", "--dataset", "seq-tiny"]).args.model == "ncm"
    assert capsys.readouterr().err == ""


def test_names_of_elsewhere_lead_to_methods_and_take_no_name_of_ours():
    assert set(registry.RENAMED.values()) <= set(registry.names("model"))
    assert not set(registry.RENAMED) & set(registry.names("model"))
    assert all(registry.canonical(name) == name for name in registry.RENAMED)


def test_a_plug_in_keeps_a_name_that_is_ours_under_another(tmp_path):
    (tmp_path / "mine.py").write_text(
        '"""Zero-shot of my own."""\nfrom models.sgd import Sgd\n\n\nclass Mine(Sgd):\n'
        '    NAME = "zero-shot"\n    COMPATIBILITY = ["class-il"]\n'
    )
    argv = ["--plugins", str(tmp_path / "mine.py"), "--model", "zero-shot", "--dataset", "seq-tiny", "--lr", "0.1"]
    try:
        assert cli.parse(argv).model_class.__name__ == "Mine"
    finally:
        plugins.use(None)


def test_show_config_names_origins(capsys):
    assert cli.parse([*ER, "--show_config"]) is None
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["lr"].endswith("command line") and rows["batch_size"].endswith("dataset")


@pytest.mark.parametrize("text, value", [("0,2,1", [0, 2, 1]), ("0-2-1", [0, 2, 1]), ("0 2 1", [0, 2, 1])])
def test_integer_list(text, value):
    assert flags.integer_list(text) == value


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (flags.positive, "0.5", "0"),
        (flags.natural, "0", "-1"),
        (flags.share, "1", "0"),
        (flags.fraction, "0", "1.1"),
        (flags.real, "-3", "inf"),
    ],
)
def test_ranges(kind, good, bad):
    assert kind(good) == float(good)
    with pytest.raises(ArgumentTypeError):
        kind(bad)


def test_yaml_mistakes(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    folder.mkdir()
    real = configs.registry.search_folders
    monkeypatch.setattr(
        configs.registry, "search_folders", lambda kind: [tmp_path, *real(kind)] if kind == "model" else real(kind)
    )
    (folder / "er.yaml").write_text("default:\n  optim_mon: 0.5\n")
    assert "closest: optim_mom" in problems(*ER)
    (folder / "er.yaml").write_text("default: [1\n")
    assert "cannot be read as yaml" in problems(*ER)
    (folder / "er.yaml").write_text("default:\n  lr: fast\n")
    assert "er.yaml: value of lr" in problems(*ER)


def test_a_misspelt_first_flag_is_named():
    text = problems("--modell", "sgd", "--dataset", "seq-mnist", "--lr", "0.1")
    assert "--model is missing" in text and "unknown flag '--modell'. Closest: --model" in text
    assert "unknown flag" not in problems("--lr", "0.1", "--dataset", "seq-mnist")


def clip_of(model: str, dataset: str, *more: str) -> str:
    parsed = cli.parse(["--model", model, "--dataset", dataset, *more])
    return parsed.args.clip_backbone


@pytest.mark.parametrize("dataset, clip", [("seq-cifar10", "ViT-L/14"), ("mtil", "ViT-B/16"), ("seq-tiny", "tiny")])
def test_a_stream_has_one_clip_for_all_methods(dataset, clip):
    assert {clip_of(model, dataset) for model in ("clip", "cgil", "rapf", "ranpac", "wise-ft")} == {clip}
    assert clip_of("er", dataset, "--buffer_size", "9", "--lr", "0.1", "--backbone", "clip-visual") == clip
    assert clip_of("rapf", dataset, "--clip_backbone", "RN50") == "RN50"


def test_questions_and_captions_have_one_clip():
    assert clip_of("clumo", "vqacl") == clip_of("exemplar-masking", "mm-imagenet-r") == "ViT-B/16"


BEST = [  # published values, copied from Mammoth's table by hand: model, stream, buffer, values
    ("sgd", "seq-cifar10", None, {"lr": 0.1, "n_epochs": 50, "batch_size": 32}),
    ("er", "seq-cifar10", 500, {"lr": 0.1, "n_epochs": 50, "batch_size": 32}),
    ("er", "seq-tinyimg", 500, {"lr": 0.03, "n_epochs": 100}),
    ("agem", "seq-cifar10", 200, {"lr": 0.03}),
    ("ewc-on", "seq-cifar10", None, {"lr": 0.03, "e_lambda": 10, "gamma": 1}),
    ("gem", "seq-cifar10", 200, {"lr": 0.03, "gamma": 0.5}),
    ("gss", "seq-cifar10", 200, {"lr": 0.03}),
    ("fdr", "seq-cifar10", 500, {"lr": 0.03, "alpha": 1.0}),
    ("lwf", "seq-cifar10", None, {"lr": 0.01, "alpha": 3, "softmax_temp": 2, "optim_wd": 5e-4}),
    ("der", "seq-cifar100", 500, {"lr": 0.03, "alpha": 0.3}),
    ("derpp", "seq-cifar10", 5120, {"lr": 0.03, "alpha": 0.1, "beta": 1.0}),
    ("derpp", "seq-cifar100", 500, {"lr": 0.03, "alpha": 0.1, "beta": 0.5}),
    ("icarl", "seq-cifar100", 2000, {"lr": 0.3, "opt_wd": 1e-5}),
    ("icarl", "seq-cifar10", 5120, {"lr": 0.03}),
    ("lucir", "seq-cifar100", 500, {"lr": 0.03, "lamda_base": 5, "k_mr": 2, "fitting_epochs": 20}),
    ("bic", "seq-cifar100", 2000, {"lr": 0.03}),
    ("xder", "seq-cifar100", 2000, {"alpha": 0.6, "beta": 0.9, "gamma": 0.85, "lambd": 0.05}),
    ("l2p", "seq-cifar100-224", None, {"lr": 0.03, "pull_constraint_coeff": 0.5, "n_epochs": 5}),
    ("dualprompt", "seq-cifar100-224", None, {"lr": 0.03, "n_epochs": 5}),
    ("coda-prompt", "seq-cifar100-224", None, {"lr": 1e-3, "n_epochs": 20}),
    ("first-stage-starprompt", "seq-cropdisease", None, {"n_epochs": 5, "learning_rate_gr": 0.01}),
]


@pytest.mark.parametrize("model, dataset, size, values", BEST, ids=["-".join(map(str, row[:3])) for row in BEST])
def test_published_values_with_their_source(model, dataset, size, values):
    memory = ["--buffer_size", str(size)] if size else []
    parsed = cli.parse(["--model", model, "--dataset", dataset, *memory, "--model_config", "best"])
    assert {name: getattr(parsed.args, name) for name in values} == values
    told = [parsed.origins[name] for name in values if name not in {"batch_size"} and "yaml" in parsed.origins[name]]
    assert told and all(" at " in origin for origin in told), "Mammoth's file, or the authors', and its commit"


def test_nowand_and_a_rate_of_zero_are_accepted(tmp_path, monkeypatch):
    assert cli.parse([*ER, "--nowand", "1"]).args.nowand == 1
    assert "--nowand can only be 1" in problems(*ER, "--nowand", "0")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "er.yaml").write_text("default: {lr: 0}\nseq-mnist: {lr: -1}\n")
    real = configs.registry.search_folders
    monkeypatch.setattr(
        configs.registry, "search_folders", lambda kind: [tmp_path, *real(kind)] if kind == "model" else real(kind)
    )
    assert cli.parse(ER[:-2]).args.lr == 0
    assert "out of range" in problems(*ER[:-2], "--model_config", "best")
