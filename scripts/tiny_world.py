"""Contact sheets of the picture world, and the gap between chance and joint training on its streams.

python scripts/tiny_world.py --write docs/tiny_world.md --sheets docs/img

Each rung of the ladder (chance, zero-shot, collapse, replay, joint training) is a run of main.py with three seeds, each
with images and a class order of its own (finished runs are skipped), except two that no single run measures: majority
answers, and how fine-tuning CLIP on one domain changes accuracy on the others. The table, with the command of each
rung, is written between two markers in the file.
"""

import argparse
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch.nn.functional import cross_entropy, normalize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from backbone.clip import load_clip  # noqa: E402
from backbone.clip_files import CLUTTERED_DIR, TINY_DIR, sha256_file  # noqa: E402
from datasets import get_dataset  # noqa: E402
from datasets.tiny_world.captions import QUESTION_KINDS  # noqa: E402
from datasets.utils.stream_cache import sources_digest  # noqa: E402
from scripts.tiny_world_far import draw as far_sheet  # noqa: E402
from scripts.tiny_world_far import rows_of_far  # noqa: E402
from scripts.tiny_world_masks import rows_of_masks  # noqa: E402
from scripts.tiny_world_questions import rows_of_rules  # noqa: E402
from scripts.tiny_world_sheet import stream_sheets, world_sheets  # noqa: E402
from utils.engine.record import read_record  # noqa: E402

BEGIN, END = "<!-- ladder: written by scripts/tiny_world.py -->", "<!-- end of ladder -->"
LOWER_BOUND_EPOCHS = 2  # of fine-tuning on the first domain

# stream, rung, target, flags of the run, number read from its record
SEQ, MTIL, VQA, MM = "seq-tiny", "mtil-tiny", "clove-tiny-function", "mm-tiny"
RUNS = [
    (SEQ, "zero-shot, one template", "30 to 65", "--model clip", "class_il_last"),
    (SEQ, "class means (ncm)", "", "--model ncm", "class_il_last"),
    (SEQ, "joint linear probe", "80 to 97", "--model linear-probe --joint 1", "class_il_last"),
    (
        SEQ,
        "image tower fine-tuned task by task (sgd)",
        "at most 25",
        "--model sgd --model_config best",
        "class_il_last",
    ),
    (
        SEQ,
        "experience replay, 500 images",
        "between sgd and joint",
        "--model er --buffer_size 500 --model_config best",
        "class_il_last",
    ),
    (MM, "joint probe, image and caption", "5 above either", "--model linear-probe --joint 1", "class_il_last"),
    (MM, "joint probe, image alone", "", "--model linear-probe --joint 1 --probe_input image", "class_il_last"),
    (MM, "joint probe, caption alone", "", "--model linear-probe --joint 1 --probe_input text", "class_il_last"),
    (
        VQA,
        "all tasks in turn, both towers fine-tuned (sgd): forgetting",
        "at least 30",
        "--model sgd --model_config best",
        "vqa_forgetting",
    ),
]


def record_of(dataset: str, flags: str, seed: int, args: Namespace) -> list[dict]:
    """The record of one run of main.py; a finished run with the same flags, weights and world is reused."""
    tower = CLUTTERED_DIR if dataset == MM else TINY_DIR
    world = sources_digest(ROOT / "datasets" / "tiny_world")[:8] + sha256_file(tower / "model.safetensors")[:8]
    folder = (
        Path(args.results_path).resolve()
        / world
        / "-".join([dataset, *flags.replace("--", "").replace("/", "_").split(), str(seed)])
    )
    command = [sys.executable, "main.py", "--dataset", dataset, *flags.split(), "--seed", str(seed)]
    command += [
        "--picture_seed",
        str(seed),
        "--resume",
        "auto",
        "--results_path",
        str(folder),
        "--base_path",
        args.base_path,
    ]
    split = dataset in {SEQ, MM}
    command += ["--permute_classes", "1"] if split else []
    command += ["--device", "cpu", "--non_verbose", "1", "--autosave", "0"]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return read_record(printed.rpartition("record: ")[2].splitlines()[0])


def diagonal(rows: list[dict], name: str) -> np.ndarray:
    """Score of each task right after it was trained."""
    return np.array([row["scores"][name][row["task"]] for row in rows if row["type"] == "task"])


def over_seeds(measure: Callable[[int], np.ndarray], seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half the 95 % interval (Student's t) of numbers measured with each seed."""
    found = np.stack([np.atleast_1d(measure(seed)) for seed in range(seeds)])
    half = (
        student.ppf(0.975, seeds - 1) * found.std(0, ddof=1) / seeds**0.5
        if seeds > 1
        else np.full(found.shape[1], np.nan)
    )
    return found.mean(0), half


def dataset_of(name: str, seed: int, args: Namespace):
    values = {"dataset": name, "picture_seed": seed, "seed": seed, "base_path": args.base_path, "batch_size": 64}
    return get_dataset(Namespace(**values, clip_backbone="tiny", mtil_order="II"))


def majority(seed: int, args: Namespace) -> np.ndarray:
    """Soft accuracy of each task's most frequent training answer, whatever the question."""
    dataset, found = dataset_of(VQA, seed, args), []
    for _ in range(dataset.N_TASKS):
        train, test = dataset.get_data_loaders()
        found.append(100 * test.dataset.soft[:, train.dataset.targets.mode().values].mean().item())
    return np.array(found)


@torch.no_grad()
def own_names(net, keys: torch.Tensor, dataset) -> np.ndarray:
    """Accuracy on each domain among its own names, by the image tower in its current state."""
    found = []
    for task, loader in enumerate(dataset.all_loaders()[1]):
        first, end = dataset.get_offsets(task)
        hits = [(net.encode_image(x) @ keys[first:end].T).argmax(1) + first == y for x, y in loader]
        found.append(100 * torch.cat(hits).float().mean().item())
    return np.array(found)


def tuned_on_first(seed: int, args: Namespace) -> np.ndarray:
    """Accuracies (2, domains) before and after fine-tuning the image tower on the first domain of order II (objects),
    its names fixed, by AdamW 1e-3."""
    dataset = dataset_of(MTIL, seed, args)
    torch.manual_seed(seed)
    net = load_clip("tiny")
    sentences = [own[0].format(n) for n, own in zip(dataset.get_class_names(), dataset.class_templates(), strict=True)]
    with torch.no_grad():
        keys = normalize(net.encode_text(net.tokenize(sentences)), dim=1)
    before = own_names(net, keys, dataset)
    loader, _ = dataset.get_data_loaders()
    end = dataset.get_offsets(0)[1]
    optimizer = torch.optim.AdamW(net.clip.visual.parameters(), lr=1e-3)
    for epoch in range(LOWER_BOUND_EPOCHS):
        for x, y, _ in loader.epoch(epoch):
            logits = net.logit_scale.detach() * normalize(net.encode_image(x), dim=1) @ keys[:end].T
            optimizer.zero_grad()
            cross_entropy(logits, y).backward()
            optimizer.step()
    return np.stack([before, own_names(net, keys, dataset)]).ravel()


def text(mean: float, half: float) -> str:
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def rows_of_runs(args: Namespace) -> list[list[str]]:
    rows = [[SEQ, "chance", "", text(100 / 60, np.nan), ""]]
    for stream, rung, goal, flags, name in RUNS:

        def measure(seed, stream=stream, flags=flags, name=name):
            return record_of(stream, flags, seed, args)[-1]["summary"][name]

        mean, half = over_seeds(measure, args.seeds)
        rows.append([stream, rung, goal, text(mean[0], half[0]), f"`{flags}`"])
    return rows


def rows_of_domains(args: Namespace) -> list[list[str]]:
    """Zero-shot accuracy on each domain, before and after fine-tuning on the first one."""
    dataset = dataset_of(MTIL, 0, args)
    mean, half = over_seeds(lambda seed: tuned_on_first(seed, args), args.seeds)
    n, rows = dataset.N_TASKS, []
    for task, domain in enumerate(dataset.domains):
        first, end = dataset.get_offsets(task)
        cells = [text(mean[i], half[i]) for i in (task, n + task)]
        what = "fine-tuned on it" if task == 0 else f"after fine-tuning on {dataset.domains[0]}"
        rows.append([MTIL, f"{domain}: zero-shot; {what}", f"chance {100 / (end - first):.1f}", "; ".join(cells), ""])
    return rows


def rows_of_questions(args: Namespace) -> list[list[str]]:
    """A linear head on frozen features against the majority answer, by kind of question."""
    flags = "--model linear-probe"
    head, half = over_seeds(lambda seed: diagonal(record_of(VQA, flags, seed, args), "class_il"), args.seeds)
    guess, _ = over_seeds(lambda seed: majority(seed, args), args.seeds)
    rows = []
    for task, kind in enumerate(QUESTION_KINDS):
        goal = f"majority {guess[task]:.1f}, 15 above"
        rows.append([VQA, f"linear head, {kind}", goal, text(head[task], half[task]), f"`{flags}`"])
    return rows


def table(args: Namespace) -> str:
    head = ["stream", "rung", "target", f"percent, mean of {args.seeds} seeds ± half the 95 % interval", "flags"]
    far = rows_of_far(args, record_of, over_seeds, text)
    rows = [*rows_of_runs(args), *far, *rows_of_masks(args.seeds), *rows_of_domains(args), *rows_of_questions(args)]
    rows += rows_of_rules(args, record_of, over_seeds, text)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    command = f"python scripts/tiny_world.py --seeds {args.seeds} --write docs/tiny_world.md --sheets docs/img"
    return "\n".join([BEGIN, "## The streams through main.py", "", f"`{command}`", "", *lines, END])


def write(path: Path, ladder: str) -> None:
    """Replace the text between the markers, or append it."""
    old = path.read_text() if path.is_file() else ""
    before, found, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if found else "\n"
    path.write_text((before if found else old.rstrip() + "\n\n") + ladder + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="Markdown file to write the table to (default: print it)")
    parser.add_argument("--sheets", type=Path, help="folder to write the contact sheets to")
    parser.add_argument("--results_path", default="runs/ladder")
    parser.add_argument("--base_path", default="data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
        world_sheets(args.sheets)
        stream_sheets(args.sheets)
        far_sheet(args.sheets)
    found = table(args)
    if args.write:
        write(args.write, found)
    print(found)


if __name__ == "__main__":
    main()
