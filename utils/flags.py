"""The framework's flags: names, types, ranges and meanings. Standard library only."""

import argparse
import math
import os
from collections.abc import Callable

from utils import binary_to_boolean_type, custom_str_underscore
from utils.errors import shown

LARGEST_INT = 2**63 - 1  # the range of a tensor
NAME_BYTES, PATH_LETTERS = 255, 3000  # of one part, and of a whole path, with room for what we append


def number(kind: type, low: float = -math.inf, high: float = math.inf, open_low=False, open_high=False) -> Callable:
    """Argument type: a finite number in a range; the error gives the range."""
    left, right = ("(" if open_low else "["), (")" if open_high else "]")
    span = f"{left}{low:g}, {high:g}{right}" if math.isfinite(high) else f"{'>' if open_low else '>='} {low:g}"

    def parse(text):
        try:
            value = kind(text)
            if kind is int and isinstance(text, float) and text != value:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"'{shown(text)}' is not {'an integer' if kind is int else 'a number'}"
            ) from None
        if kind is int and abs(value) > LARGEST_INT:
            raise argparse.ArgumentTypeError(f"{shown(text)} is out of range: {LARGEST_INT} is the largest integer")
        inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
        if not math.isfinite(value) or not inside:
            wanted = "finite" if math.isinf(low) and math.isinf(high) else span
            raise argparse.ArgumentTypeError(f"{shown(text)} is out of range: it must be {wanted}")
        return value

    parse.__name__ = kind.__name__
    return parse


positive_int = number(int, 1)
natural = number(int, 0)
real = number(float)
positive = number(float, 0, open_low=True)
non_negative = number(float, 0)
fraction = number(float, 0, 1)
share = number(float, 0, 1, open_low=True)
seconds = number(float, 0)


def boolean(text) -> bool:
    """Argument type: 0/1, true/false, yes/no."""
    try:
        return binary_to_boolean_type(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sentence(text) -> str:
    """Argument type: words around a class name, with {} for it."""
    try:
        fits = "{}" in text and text.format("name") != text.format("another")
    except (IndexError, KeyError, ValueError):
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(
            f"'{shown(text)}' must contain the placeholder {{}} for the class name exactly once: 'a photo of a {{}}.'"
        )
    return text


def sentences(text) -> str:
    """Argument type: a sentence with {}, or a file of them, one per line."""
    return str(text) if "{}" not in str(text) and os.path.isfile(os.path.expanduser(str(text))) else sentence(text)


def integer_list(text) -> list[int]:
    """Argument type: integers separated by commas, dashes or blanks: "0,2,1", "0-2-1"."""
    if isinstance(text, (list, tuple)):
        return [int(v) for v in text]
    try:
        values = [int(part) for part in str(text).replace(",", " ").replace("-", " ").split()]
    except ValueError:
        values = []
    if not values:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not a list of integers such as 0,2,1")
    return values


def path(text) -> str:
    """Argument type: a path that a file system can hold; ~ and ~user are expanded."""
    text = str(text)
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not a path")
    whole = os.path.expanduser(text)
    if whole.startswith("~"):
        raise argparse.ArgumentTypeError(f"'{shown(text)}': unknown user {shown(whole.split('/')[0][1:] or 'home')}")
    longest = max(whole.split("/"), key=len)
    if len(longest.encode(errors="surrogateescape")) > NAME_BYTES or len(whole) > PATH_LETTERS:
        what = (
            f"its part '{shown(longest)}' is longer than {NAME_BYTES} bytes"
            if len(whole) <= PATH_LETTERS
            else "it is too long"
        )
        raise argparse.ArgumentTypeError(f"'{shown(text)}' cannot be a path: {what}")
    return whole


def file_name(text) -> str:
    """Argument type: the start of a file's name, not a path."""
    if not str(text).strip(". ") or any(c in "/\\\0" or not c.isprintable() for c in str(text)) or len(str(text)) > 80:
        raise argparse.ArgumentTypeError(
            f"'{shown(text)}' is not valid in a file name: use 1 to 80 characters without / and \\"
        )
    return str(text)


def alias(choices: dict[str, str]) -> Callable:
    """Argument type: one of several spellings, stored under its proper name."""

    def parse(text):
        if str(text) not in choices:
            raise argparse.ArgumentTypeError(
                f"'{shown(text)}' is not one of {', '.join(sorted(set(choices.values())))}"
            )
        return choices[str(text)]

    return parse


def add_first_args(parser: argparse.ArgumentParser) -> None:
    """Flags that decide which files are imported."""
    group = parser.add_argument_group("what to run")
    group.add_argument("--model", type=custom_str_underscore, help="method to train (--list models)")
    group.add_argument("--dataset", type=custom_str_underscore, help="stream of tasks (--list datasets)")
    group.add_argument("--protocol", help="published protocol whose flags are the defaults (--list protocols)")
    group.add_argument("--backbone", help="network (--list backbones; timm:<name> for any timm model)")
    group.add_argument(
        "--dataset_config", help="yaml in datasets/configs/<dataset>/ (default.yaml is used automatically)"
    )
    group.add_argument(
        "--model_config",
        type=alias({"default": "default", "base": "default", "best": "best"}),
        default="default",
        help="hyperparameters from models/config/<model>.yaml: default or best",
    )
    group.add_argument(
        "--plugins",
        action="append",
        metavar="PATH",
        type=path,
        help="a .py file, a folder of them, or a checkout of Mammoth whose files are added to ours; may be repeated. "
        "--model plugin:er selects theirs if both have the name",
    )
    group.add_argument("--loadcheck", type=path, help="checkpoint whose weights are loaded before training")
    group.add_argument(
        "--list",
        nargs="*",
        metavar="WORD",
        help="list models, datasets, backbones, protocols or all, one per line, and exit; further words are name "
        "patterns, for example models 'l*'",
    )
    group.add_argument("--show_config", action="store_true", help="print every value with its origin, and exit")
    group.add_argument(
        "-h", "--help", action="store_true", help="show this help; with --model and --dataset, also their flags"
    )


def distribution(text) -> str:
    """Argument type: no, or ddp; Mammoth's dp is refused with the reason."""
    if text == "dp":
        raise argparse.ArgumentTypeError(
            "dp copies the network to every GPU in each step, and one process drives them all: use ddp under torchrun"
        )
    if text not in {"no", "ddp"}:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not one of no, ddp")
    return str(text)


def add_experiment_args(parser: argparse.ArgumentParser) -> None:
    """Flags that change the results."""
    group = parser.add_argument_group("experiment")
    add = group.add_argument
    add("--lr", type=positive, help="learning rate (required if the training loop trains anything)")
    add("--batch_size", type=positive_int, help="stream batch size (default: the dataset's)")
    add(
        "--label_perc_by_task",
        "--label_perc",
        "--lpt",
        dest="label_perc",
        type=share,
        default=1.0,
        help="fraction of each task's images that keep their label",
    )
    add(
        "--label_perc_by_class",
        "--lpc",
        dest="label_perc_by_class",
        type=share,
        default=1.0,
        help="fraction of each class's images that keep their label",
    )
    add("--joint", type=boolean, default=False, help="joint training: one task with all classes (upper bound)")
    add(
        "--eval_future",
        type=boolean,
        help="also evaluate on future tasks (default: on for methods designed for it)",
    )
    add(
        "--mixed_batches",
        type=boolean,
        default=False,
        help="also score each test set from test batches that mix all test sets at random",
    )
    add("--custom_task_order", type=integer_list, help="order of tasks, for example 2,0,1")
    add("--custom_class_order", type=integer_list, help="order of classes, a permutation")
    add("--permute_classes", type=boolean, default=False, help="shuffle the class order with --class_order_seed")
    add("--class_order_seed", type=natural, help="seed of the class order (default: --seed)")
    add(
        "--validation",
        type=number(float, 0, 100, open_low=True, open_high=True),
        help="fraction (< 1) or percent per class held out of the training set and used instead of the test set",
    )
    add(
        "--validation_mode",
        choices=["current", "complete"],
        default="current",
        help="validation images of the current task, or of all classes so far",
    )
    _add_training_args(add)
    add(
        "--noise_type",
        default="symmetric",
        help="symmetric, or asymmetric (CIFAR-10 and CIFAR-100)",
        type=alias({name[:end]: name for name in ("symmetric", "asymmetric") for end in (None, -5, -6)}),  # symm, sym
    )
    add("--noise_rate", type=fraction, default=0.0, help="fraction of training labels that are wrong")
    add("--start_from", type=natural, help="first task to train (0-based)")
    add("--stop_after", type=natural, help="last task to train (0-based)")


def _add_training_args(add: Callable) -> None:
    """What ends a task, and the optimizer with its schedule."""
    add(
        "--fitting_mode",
        choices=["epochs", "iters", "early_stopping"],
        default="epochs",
        help="what ends a task: --n_epochs, --n_iters, or the validation score",
    )
    add("--early_stopping_patience", type=positive_int, default=5, help="checks without improvement before stopping")
    add(
        "--early_stopping_metric", choices=["loss", "accuracy"], default="loss", help="validation score that is watched"
    )
    add("--early_stopping_freq", type=positive_int, default=1, help="epochs between checks")
    add(
        "--early_stopping_epsilon",
        type=non_negative,
        default=1e-6,
        help="smallest change that counts as an improvement",
    )
    add("--n_epochs", type=natural, help="epochs per task (default: the dataset's)")
    add("--n_iters", type=positive_int, help="iterations per task, with --fitting_mode iters")
    add("--optimizer", choices=["sgd", "adam", "adamw"], default="sgd", help="optimizer of the training loop")
    add("--optim_wd", type=non_negative, default=0.0, help="weight decay")
    add(
        "--decay_vectors", type=boolean, default=True, help="also apply weight decay to biases, norms and scale factors"
    )
    add("--optim_mom", type=non_negative, default=0.0, help="SGD momentum")
    add("--optim_nesterov", type=boolean, default=False, help="Nesterov's form of the momentum")
    add("--drop_last", type=boolean, default=False, help="drop the last incomplete batch of an epoch")
    add("--lr_scheduler", choices=["multisteplr", "cosine"], help="learning-rate schedule within a task")
    add("--scheduler_mode", choices=["epoch", "iter"], default="epoch", help="when the schedule steps")
    add("--lr_milestones", type=natural, nargs="+", default=[], help="epochs at which multisteplr steps")
    add("--sched_multistep_lr_gamma", type=positive, default=0.1, help="factor of the learning rate at a milestone")


def add_management_args(parser: argparse.ArgumentParser) -> None:
    """Flags that change where things are written and how fast, not the results."""
    group = parser.add_argument_group("management")
    add = group.add_argument
    add("--seed", type=natural, help="seed of everything (default: random, and written to the record)")
    add("--base_path", type=path, default="./data/", help="root of the datasets")
    add("--results_path", type=path, default="./runs/", help="root of the run records")
    add("--checkpoint_path", type=path, help="folder for --savecheck (default: ckpt/ in the run's folder)")
    add("--device", help="cpu, cuda, cuda:1, 0 ... (default: the GPU with the most free memory, else the CPU)")
    add("--distributed", type=distribution, default="no", help="ddp: the processes that torchrun starts share the run")
    add("--rank_timeout", type=positive, default=600.0, help="seconds that a rank waits for the others")
    add("--num_workers", type=natural, help="processes that read image files (default: by their number)")
    add("--image_cache", type=boolean, default=False, help="keep decoded images on disk")
    add(
        "--max_memory_gb", type=positive, help="refuse sizes that need more memory (default: the machine's free memory)"
    )
    add("--notes", help="free text stored in the record")
    add("--eval_epochs", type=positive_int, help="also evaluate every k epochs within a task")
    add("--eval_every", type=positive_int, help="evaluate after every k-th task and the last (default: after each)")
    add("--eval_final", type=boolean, default=False, help="evaluate after the last task only")
    add("--eval_batch_size", type=positive_int, help="images per evaluation batch (default: what fits 64 MiB)")
    add(
        "--enable_other_metrics",
        type=boolean,
        default=False,
        help="forward transfer (needs one more evaluation per task)",
    )
    add("--non_verbose", type=boolean, default=False, help="no progress bars")
    add("--disable_log", type=boolean, default=False, help="do not write a record")
    add("--debug_mode", type=boolean, default=False, help="a few batches per epoch and test set: does it run?")
    add("--inference_only", type=boolean, default=False, help="evaluate without training")
    add(
        "-O",
        "--code_optimization",
        type=number(int, 0, 3),
        default=0,
        help="1: TF32 products; 2: also bf16 products in the network; "
        "3: also torch.compile of modules called as a whole",
    )
    _add_save_args(add)
    add(
        "--features",
        choices=["disk", "ram", "off", "verify"],
        default="disk",
        help="where features of frozen encoders are cached; verify: "
        "on disk, reading all images and recomputing cached features",
    )


def _add_save_args(add: Callable) -> None:
    add("--savecheck", choices=["last", "task"], help="save a checkpoint at the end, or after each task")
    add("--ckpt_name", type=file_name, help="prefix of saved checkpoints")
    add(
        "--autosave",
        type=seconds,
        default=60.0,
        help="minimum seconds between saves for --resume; "
        "longer if saving would take over 2 %% of the time; 0: no saves",
    )
    add(
        "--resume",
        choices=["auto", "force"],
        help="continue the unfinished run of the same configuration; "
        "force: even if images, names or weights have changed",
    )
    add("--save_after_interrupt", type=boolean, default=True, help="save on Ctrl-C and SIGTERM")


def add_sink_args(parser: argparse.ArgumentParser) -> None:
    """Flags about where the lines of the record also go."""
    add = parser.add_argument_group("watching").add_argument
    add("--csv", type=boolean, default=False, help="also scores.csv in the run's folder")
    add("--tensorboard", type=boolean, default=False, help="also event files in the run's folder (package tensorboard)")
    add("--wandb", type=boolean, default=False, help="also Weights & Biases (package wandb); offline without a key")
    add("--wandb_entity", help="team or user there; with --wandb_project it turns --wandb on")
    add("--wandb_project", help="project there (default: mammoth-vl)")
    add("--wandb_name", help="name of the run there")


def add_memory_args(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of every method that stores samples."""
    group = parser.add_argument_group("replay buffer")
    group.add_argument("--buffer_size", type=positive_int, required=True, help="samples in the replay buffer")
    return group


def add_rehearsal_args(parser: argparse.ArgumentParser) -> None:
    """Flags of every method that replays batches from its memory."""
    group = add_memory_args(parser)
    group.add_argument("--minibatch_size", type=positive_int, help="samples replayed per step (default: batch_size)")


# Flags read only by methods that train in the loop. Others may list those they ignore in IDLE_FLAGS, each with
# their own flag that does the same, or "": on the command line they are then refused.
LOOP_FLAGS = tuple(
    "lr batch_size n_epochs n_iters fitting_mode early_stopping_patience early_stopping_metric early_stopping_freq "
    "early_stopping_epsilon optimizer optim_wd optim_mom optim_nesterov drop_last lr_scheduler scheduler_mode "
    "lr_milestones sched_multistep_lr_gamma eval_epochs".split()
)

# Mammoth's flags without an effect here: setting one is refused with the reason, never ignored.
REFUSED = {
    "load_best_args": "is deprecated upstream; use --model_config best",
    "save_checkpoint_mode": "has one mode here: checkpoints are safetensors, and nothing in them is executed",
    "nowand": "can only be 1: nothing is sent unless --wandb 1 is given",
    "disable_noisy_labels_cache": "has nothing to disable: noisy labels are drawn from the seed, not cached",
    "cache_path_noisy_labels": "has no files to place: noisy labels are drawn from the seed, not cached",
}


class Arguments(argparse.Namespace):
    """The values of a run. Refused flags read as off, for files that check them; records do not have them."""

    load_best_args = disable_noisy_labels_cache = False
    save_checkpoint_mode, cache_path_noisy_labels = "safe", "noisy_labels"
    wandb_url = None
    nowand = 1


# Flags whose default is accepted if given explicitly, because scripts written for Mammoth pass it.
REFUSED_BUT = {"save_checkpoint_mode": {"safe"}, "nowand": {"1", "true", "True"}}
