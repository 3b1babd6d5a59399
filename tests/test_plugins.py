"""Files in Mammoth's style run through --plugins; ours take precedence; errors are reported in one line."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

import main
from tests.conftest import comparable, newest_record
from utils import cli
from utils.batch_transforms import augmentation_of
from utils.cli import plugins, registry
from utils.errors import UserError
from utils.memory.buffer import Buffer

HERE = Path(__file__).resolve().parent / "plugins"
FLAGS = ["--lr", "0.02", "--non_verbose", "1", "--seed", "0", "--device", "cpu"]
MEMORY = ["--buffer_size", "12"]


@pytest.fixture(autouse=True)
def no_plugins_afterwards():
    yield
    plugins.use(None)


@pytest.fixture
def start(tmp_path, capfd):
    """start(*argv): (exit code, lines on stderr, rows of the record)."""

    def run(*argv: str) -> tuple[int, list[str], list[dict]]:
        capfd.readouterr()
        narrow = [] if "drop-pictures" in argv else ["--num_filters", "2"]  # its network does not have this flag
        code = main.main(
            [*argv, *FLAGS, *narrow, "--results_path", str(tmp_path / "runs"), "--base_path", str(tmp_path)]
        )
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        return code, told, newest_record(tmp_path / "runs")

    return run


def pictures(folder: Path) -> None:
    """The arrays that drop_pictures reads: a bright stripe at a place of its class."""
    folder.mkdir()
    for part, count in (("train", 48), ("test", 24)):
        labels = np.arange(count) % 6
        images = np.random.RandomState(count).randint(0, 120, (count, 20, 20, 3)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[3 * label : 3 * label + 4] += 120
        np.save(folder / f"x_{part}.npy", images)
        np.save(folder / f"y_{part}.npy", labels)


RUNS = [
    ("drop-replay", "drop-digits", [*MEMORY, "--noise_rate", "0.2", "--use_true", "1"]),
    ("drop-oldstyle", "drop-digits", [*MEMORY, "--penalty", "0.5"]),
    ("drop-newhead", "drop-digits", ["--freeze", "1"]),
    ("drop-maps", "drop-digits", ["--lambda_maps", "0.5"]),
    ("drop-herding", "drop-digits", MEMORY),
    ("drop-projection", "drop-domains", MEMORY),
    ("drop-quadratic", "drop-domains", ["--e_lambda", "1"]),
    ("drop-buffer-file", "drop-domains", MEMORY),
    ("drop-projection", "drop-digits", [*MEMORY, "--dataset_config", "long", "--permute_classes", "1"]),
    ("er", "drop-stream", [*MEMORY, "--stream_seed", "4"]),  # our method on their stream
    ("drop-contrast", "drop-digits", MEMORY),
    ("drop-future", "drop-digits", []),
    ("drop-parallel", "drop-digits", [*MEMORY, "--distributed", "no"]),
    ("drop-schedule", "drop-digits", []),
    ("drop-schedule", "drop-pictures", ["--plain_schedule", "1", "--prompt_length", "3"]),
    ("drop-masked", "drop-digits", MEMORY),
    ("drop-masked", "drop-pictures", [*MEMORY, "--strategy", "labrs", "--held_out", "1"]),
    ("drop-loops", "drop-digits", []),
    ("drop-loops", "drop-digits", ["--collect", "1"]),
    ("drop-lipschitz", "drop-digits", [*MEMORY, "--alpha_lip_lambda", "0.1", "--beta_lip_lambda", "0.1"]),
    ("er", "drop-pictures", [*MEMORY, "--permute_classes", "1"]),
]


@pytest.mark.parametrize("model, dataset, more", RUNS, ids=lambda v: v if isinstance(v, str) else "")
def test_their_files_run(start, tmp_path, model, dataset, more):
    if dataset == "drop-pictures":
        pictures(tmp_path / "pictures")
    code, told, rows = start("--plugins", str(HERE), "--model", model, "--dataset", dataset, *more)
    assert code == 0 and told == []
    assert rows[-1]["status"] == "done" and 0 <= rows[-1]["summary"]["class_il_last"] <= 100
    assert rows[-1]["summary"]["image_forwards"] > 0
    file = HERE / "datasets" / f"{dataset.replace('-', '_')}.py"
    assert rows[0]["plugins"][str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name in rows[0]["args"]["plugin_files"]["dataset"]
    assert ("model" in rows[0]["args"]["plugin_files"]) == model.startswith("drop")


def test_defaults_of_a_yaml_beside_the_file():
    argv = ["--plugins", str(HERE), "--model", "sgd", "--dataset", "drop-digits", "--lr", "0.1"]
    parsed = cli.parse(argv)
    assert (parsed.args.n_epochs, parsed.args.optim_mom, parsed.args.batch_size) == (2, 0.5, 8)
    assert parsed.args.backbone == "resnet18" and parsed.origins["n_epochs"] == "default.yaml"
    assert cli.parse([*argv, "--n_epochs", "3"]).args.n_epochs == 3


@pytest.mark.parametrize(
    "model, more",
    [
        ("drop-projection", MEMORY),
        ("drop-lipschitz", [*MEMORY, "--beta_lip_lambda", "0.5"]),  # a parameter made in the first task
        ("drop-loops", ["--collect", "1"]),  # arrays kept in lists
        ("drop-schedule", []),  # a schedule made in begin_task
        ("drop-future", []),
    ],
)
def test_a_run_that_broke_goes_on_to_the_same_numbers(start, tmp_path, model, more):
    argv = ["--plugins", str(HERE), "--model", model, "--dataset", "drop-digits", *more]
    plugins.use([str(HERE)])
    module = registry.load("model", model)
    real = module.end_task
    module.end_task = lambda self, dataset: 1 / 0 if self.current_task == 1 else real(self, dataset)
    try:
        with pytest.raises(ZeroDivisionError):
            start(*argv)
    finally:
        module.end_task = real
    code, _, rows = start(*argv, "--resume", "auto")
    assert code == 0 and [r["type"] for r in rows if r["type"] != "warning"] == ["start", "task", "task", "task", "end"]
    shutil.rmtree(tmp_path / "runs")
    assert comparable(start(*argv)[2][-1]) == comparable(rows[-1])


def test_a_split_of_their_dataset_is_theirs():
    plugins.use([str(HERE)])
    args = cli.parse(["--plugins", str(HERE), "--model", "sgd", "--dataset", "drop-digits", "--lr", "0.1"]).args
    args.seed, args.class_order = 0, None
    dataset = registry.load("dataset", "drop-digits")(args)
    split = dataset.get_data_loaders()[0].dataset
    assert split.data.shape == (24, 16, 16, 3) and split.targets.tolist() == [0, 1] * 12
    assert split.not_aug_transform(split.data[0]).shape == (3, 16, 16) and len(split[0]) == 3
    assert dataset.get_denormalization_transform().mean.tolist() == pytest.approx([0.4] * 3)


def test_a_split_takes_other_images_and_shows_what_their_dataset_has():
    plugins.use([str(HERE)])
    args = cli.parse(["--plugins", str(HERE), "--model", "sgd", "--dataset", "drop-digits", "--lr", "0.1"]).args
    args.seed, args.class_order = 0, None
    dataset = registry.load("dataset", "drop-digits")(args)
    loader = dataset.get_data_loaders()[0]
    split, before = loader.dataset, loader.dataset.data
    split.data = np.concatenate([before[:3], 255 - before[:2]])
    split.targets = torch.tensor([5, 4, 3, 2, 1])
    assert len(split) == 5 and split.data.shape == (5, 16, 16, 3) and np.array_equal(split.data[:3], before[:3])
    batch = next(iter(loader))
    assert sorted(batch[1].tolist()) == [1, 2, 3, 4, 5] and batch[2].shape == (5, 3, 16, 16)
    plain = batch[2][batch[1].tolist().index(1)]
    assert torch.allclose(plain, 1 - torch.from_numpy(before[1]).permute(2, 0, 1) / 255, atol=1e-6)
    assert split.root.endswith("DRAWN") and not hasattr(split, "no_such_thing")
    assert len(dataset.get_data_loaders()[0].dataset) == 24  # the stream itself is as it was


def test_replay_with_a_transform_that_has_no_batch_form():
    """What makes images one by one is not taken for a transform of one image."""
    steps = transforms.Compose(
        [
            transforms.RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1)),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    buffer = Buffer(4)
    buffer.add_data(torch.rand(4, 3, 8, 8), torch.arange(4))
    images, labels = buffer.get_data(3, transform=augmentation_of(steps))
    want = (torch.round(buffer.examples[labels] * 255) / 255 - 0.5) / 0.5  # through bytes, as torchvision does it
    assert torch.allclose(images, want, atol=0.02)


def test_a_dataset_whose_files_are_absent_says_what_it_wanted(start):
    code, told, _ = start("--plugins", str(HERE), "--model", "sgd", "--dataset", "drop-pictures")
    assert code == 2 and told[0].startswith("error: download_from_hub somebody/pictures")
    assert "nothing is downloaded automatically" in told[0]


def theirs(folder: Path, text: str = "", name: str = "er") -> Path:
    """A checkout whose models/<name>.py is a plain fine-tuning under that name, or `text`."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    body = (
        f'"""Theirs."""\nfrom models.utils.continual_model import ContinualModel\n{text}\n\n'
        f"class T(ContinualModel):\n    NAME = '{name}'\n    COMPATIBILITY = ['class-il', 'domain-il']\n\n"
        "    def observe(self, inputs, labels, not_aug_inputs, epoch=None):\n        self.opt.zero_grad()\n"
        "        loss = self.loss(self.net(inputs), labels)\n        loss.backward()\n        self.opt.step()\n"
        "        return loss.item()\n"
    )
    (folder / "models" / f"{name.replace('-', '_')}.py").write_text(body)
    return folder


def test_ours_first_and_theirs_by_prefix(start, tmp_path):
    theirs(tmp_path / "m")
    argv = ["--plugins", str(tmp_path / "m"), "--plugins", str(HERE), "--dataset", "drop-digits"]
    plugins.use([str(tmp_path / "m")])
    assert registry.load("model", "er").__module__ == "models.er"
    assert registry.load("model", "plugin:er").__name__ == "T"
    assert {"er", "plugin:er"} <= set(registry.names("model")) and "Theirs." in cli.listing("models")
    assert start(*argv, "--model", "er")[1][0].startswith("error: --buffer_size is missing")
    code, _, rows = start(*argv, "--model", "plugin:er")
    assert code == 0 and rows[0]["args"]["model"] == "plugin:er" and "er.py" in rows[0]["args"]["plugin_files"]["model"]


def test_a_file_alone_a_flat_folder_and_nothing_left_behind(tmp_path):
    alone = theirs(tmp_path, name="alone") / "models" / "alone.py"
    for path in (alone, alone.parent, tmp_path):
        plugins.use([str(path)])
        assert "alone" in registry.names("model") and "alone" not in registry.names("dataset")
        assert registry.load("model", "alone").__name__ == "T"
        assert registry.plain_name("model", "plugin:alone") == "alone"
    plugins.use(None)
    assert "alone" not in registry.names("model")
    with pytest.raises(UserError, match="unknown model"):
        registry.load("model", "alone")
    with pytest.raises(UserError, match="no plug-in defines a model 'er': pass its file or folder as --plugins"):
        registry.load("model", "plugin:er")


def test_a_name_that_our_module_lacks_is_taken_from_theirs(tmp_path):
    theirs(tmp_path, "from models.er import helper_of_er\nassert helper_of_er() == 7", name="wants-more")
    plugins.use([str(tmp_path)])
    with pytest.raises(UserError, match="imports helper_of_er from models.er, which does not provide it"):
        registry.load("model", "wants-more")
    (tmp_path / "models" / "er.py").write_text("def helper_of_er():\n    return 7\n")
    assert registry.load("model", "wants-more").NAME == "wants-more"
    assert registry.load("model", "er").__module__ == "models.er"
    plugins.use(None)
    assert not hasattr(__import__("models.er").er, "helper_of_er")


@pytest.mark.parametrize(
    "line, part",
    [
        (
            "import no_such_package_abc",
            "needs the package 'no_such_package_abc', which is not installed: pip install no_such_package_abc",
        ),
        (
            "from models.foo_utils.bar import x",
            "imports models.foo_utils, which exists neither here nor under --plugins",
        ),
        ("from utils.loggers import Logger", "module utils.loggers is not available: results are in record.jsonl"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def broken(:", "broken.py, line 3: invalid syntax"),
    ],
)
def test_an_import_error_is_one_line_and_concerns_one_file(start, tmp_path, line, part):
    theirs(tmp_path / "m", line, "broken")
    argv = ["--plugins", str(tmp_path / "m"), "--plugins", str(HERE), "--dataset", "drop-digits"]
    code, told, _ = start(*argv, "--model", "broken")
    assert code == 2 and len(told) == 1 and part in told[0]
    assert start(*argv, "--model", "sgd")[0] == 0


def test_paths_that_hold_nothing(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    for path, part in (
        ("nowhere", "no such file or folder"),
        ("empty", "neither .py files"),
        ("text.txt", "is not a .py file"),
    ):
        assert main.main(["--plugins", str(tmp_path / path), "--list"]) == 2
        assert part in capfd.readouterr().err


def test_the_file_that_ran_is_part_of_the_configuration(tmp_path):
    shutil.copytree(HERE, tmp_path / "copy")
    argv = ["--model", "drop-maps", "--dataset", "drop-digits", "--lr", "0.1"]
    first = cli.parse([*argv, "--plugins", str(HERE)]).args.plugin_files
    assert cli.parse([*argv, "--plugins", str(tmp_path / "copy")]).args.plugin_files == first
    with open(tmp_path / "copy/models/drop_maps.py", "a") as file:
        file.write("# changed\n")
    assert cli.parse([*argv, "--plugins", str(tmp_path / "copy")]).args.plugin_files["model"] != first["model"]


PARTS = {
    "no observe": ("COMPATIBILITY = ['class-il']", "defines no observe"),
    "no loss": (
        "COMPATIBILITY = ['class-il']\n    def observe(self, inputs, labels): pass",
        "observe did not return a loss",
    ),
    "no setting": ("def observe(self, inputs, labels): return 0.0", "does not declare COMPATIBILITY"),
    "flag of ours": (
        "@staticmethod\n    def get_parser(parser):\n        parser.add_argument('--lr', type=float)",
        "get_parser adds a flag that already exists",
    ),
    "broken parser": (
        "@staticmethod\n    def get_parser(parser):\n        raise KeyError('boom')",
        "get_parser fails: KeyError: 'boom'",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_method_that_lacks_a_part_is_refused_in_one_line(start, tmp_path, part):
    body, said = PARTS[part]
    (tmp_path / "lacking.py").write_text(
        "from models.utils.continual_model import ContinualModel\nclass Lacking(ContinualModel):\n"
        f"    NAME = 'lacking'\n    {body}\n"
    )
    code, told, _ = start(
        "--plugins",
        str(HERE),
        "--plugins",
        str(tmp_path / "lacking.py"),
        "--model",
        "lacking",
        "--dataset",
        "drop-digits",
    )
    assert code == 2 and len(told) == 1 and said in told[0], told


def test_help_with_a_bare_percent_sign_and_two_flags_of_one_value(start, tmp_path, capfd):
    (tmp_path / "percent.py").write_text(
        "from models.utils.continual_model import ContinualModel\nclass Percent(ContinualModel):\n"
        "    NAME = 'percent'\n    COMPATIBILITY = ['class-il']\n    @staticmethod\n    def get_parser(parser):\n"
        "        parser.add_argument('--odd', action='store_true', help='100% odd, %(default)s')\n"
        "        parser.add_argument('--even', dest='odd', action='store_false', help='[%(default)s]')\n"
    )
    argv = [
        "--plugins",
        str(HERE),
        "--plugins",
        str(tmp_path / "percent.py"),
        "--model",
        "percent",
        "--dataset",
        "drop-digits",
    ]
    assert main.main([*argv, "--help"]) == 0
    text = capfd.readouterr().out
    assert "100% odd" in text and "[True]" in text
    assert start(*argv, "--odd", "--even")[1] == ["error: --odd and --even set the same value; use one"]
