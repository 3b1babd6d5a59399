"""Draws docs/img/architecture.png: the rooms with who may import whom, and one batch on its way to record.jsonl."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "img" / "architecture.png"
INK, GREY = "#22303c", "#75828d"
COLORS = {
    "main": "#e3e6ea",
    "utils/engine": "#f9d9b6",
    "models": "#c9dff5",
    "datasets": "#cdeaca",
    "utils/cli": "#efe2f7",
    "utils/memory": "#fde6ee",
    "utils/generative": "#fde6ee",
    "backbone": "#d5eeee",
    "utils": "#f6f3dc",
    "utils/mammoth": "#ffffff",
}
# room -> left, bottom, width, height, what it holds
ROOMS = {
    "main": (4.2, 9.75, 4.6, 0.75, "parse, build, train"),
    "utils/engine": (0.2, 7.6, 3.3, 1.25, "launch, training, evaluate, metrics\ncheckpoint, record, report"),
    "models": (
        4.2,
        7.6,
        4.6,
        1.25,
        "one file per method, which reads like its paper\nutils/: ContinualModel and families",
    ),
    "datasets": (9.5, 7.6, 3.3, 1.25, "one file per stream\nutils/: samples, splits, loaders"),
    "utils/cli": (0.2, 5.35, 3.3, 1.25, "parser, configs, registry, plugins\nstandard library only"),
    "utils/memory": (4.2, 5.35, 1.75, 1.25, "buffer, records\nexemplars"),
    "utils/generative": (6.1, 5.35, 1.75, 1.25, "Gaussians, VAE\ndiffusion"),
    "backbone": (8.0, 5.35, 2.0, 1.25, "clip.py, resnet\nhub, adapters"),
    "utils/mammoth": (10.9, 5.35, 1.9, 1.25, "names that only\nMammoth's files\nimport"),
    "utils": (
        0.2,
        3.75,
        12.6,
        0.85,
        "toolbox of a method's author: errors, flags, pair, randomness, features, schedulers, weights, ...",
    ),
}
TITLES = {
    "main": "main.py",
    "models": "models/",
    "datasets": "datasets/",
    "backbone": "backbone/",
    "utils": "utils/*.py",
}
# importing room, imported room, where the arrow starts and ends on the x axis
IMPORTS = [
    ("main", "utils/engine", 4.7, 3.2),
    ("main", "models", 6.5, 6.5),
    ("main", "datasets", 8.3, 9.9),
    ("utils/engine", "utils/cli", 1.85, 1.85),
    ("models", "utils/memory", 5.05, 5.05),
    ("models", "utils/generative", 6.95, 6.95),
    ("models", "backbone", 8.4, 8.6),
    ("datasets", "utils", 10.45, 10.45),
    ("utils/cli", "utils", 1.85, 1.85),
    ("utils/memory", "utils", 5.05, 5.05),
    ("utils/generative", "utils", 6.95, 6.95),
    ("backbone", "utils", 9.0, 9.0),
    ("utils/mammoth", "utils", 11.85, 11.85),
]
# room, title, text: the way of a batch, in order
STEPS = [
    ("datasets", "load", "samples and labels\nfrom files or memory"),
    ("datasets", "Split", "rows of one task, after\nclass order and noise"),
    ("datasets", "Loader", "order and augmentation\nkeyed by seed, epoch, row"),
    ("utils/engine", "Fit.step", "inputs, labels, not_aug\non the device"),
    ("models", "observe", "loss, one step\nof the optimizer"),
    ("utils/engine", "tick", "a safe point: save,\nor stop on a signal"),
    ("models", "end_task", "what the method keeps\nof the task"),
    ("utils/engine", "evaluate_tasks", "one pass over each test\nset, all scores from it"),
    ("utils/engine", "R[t, j]", "row t of each\nscore matrix"),
    ("utils/engine", "metrics", "pure functions of R:\nlast, forgetting, ..."),
    ("utils/engine", "record.jsonl", "a line for each task,\nthen the summary"),
]
PER_ROW = 6


def box(axes, room: str, place: tuple[float, float, float, float], title: str, text: str, size: float = 11) -> None:
    left, bottom, width, height = place
    dashed = {"linestyle": (0, (4, 3))} if room == "utils/mammoth" else {}
    shape = FancyBboxPatch(
        (left, bottom), width, height, "round,pad=0,rounding_size=0.12", facecolor=COLORS[room], edgecolor=INK, **dashed
    )
    axes.add_patch(shape)
    middle = left + width / 2
    axes.text(
        middle, bottom + height - 0.1, title, ha="center", va="top", fontsize=size + 1.5, weight="bold", color=INK
    )
    axes.text(
        middle,
        bottom + (height - 0.3) / 2,
        text,
        ha="center",
        va="center",
        fontsize=size - 1,
        color=INK,
        linespacing=1.25,
    )


def arrow(axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 14, "color": INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **(look | style)))


def rooms(axes) -> None:
    axes.text(0.2, 10.35, "Rooms: an arrow is an import", fontsize=14, weight="bold", color=INK)
    for line, text in enumerate(
        ("dotted: called, not imported;", "every room may import the toolbox,", "packages find files by utils/cli")
    ):
        axes.text(0.2, 10.05 - 0.22 * line, text, fontsize=10, color=GREY, va="center")
    for room, (left, bottom, width, height, text) in ROOMS.items():
        box(axes, room, (left, bottom, width, height), TITLES.get(room, f"{room}/"), text)
    for importer, imported, start, end in IMPORTS:
        arrow(axes, (start, ROOMS[importer][1]), (end, ROOMS[imported][1] + ROOMS[imported][3]))
    arrow(axes, (3.5, 8.2), (4.2, 8.2), linestyle=(0, (2, 2)), color=GREY)
    axes.text(3.85, 8.27, "hooks", ha="center", va="bottom", fontsize=10, color=GREY)


def batch(axes) -> None:
    axes.text(0.2, 3.1, "One batch, from file to record.jsonl", fontsize=14, weight="bold", color=INK)
    width, gap, height = 1.95, 0.18, 1.05
    places = []
    for number, (room, title, text) in enumerate(STEPS):
        row, column = divmod(number, PER_ROW)
        places.append((0.2 + column * (width + gap), 1.8 - row * (height + 0.4), width, height))
        box(axes, room, places[-1], f"{number + 1}  {title}", text, size=10.5)
    for (left, bottom, _, _), (next_left, next_bottom, _, _) in zip(places, places[1:], strict=False):
        if next_bottom == bottom:
            arrow(axes, (left + width, bottom + height / 2), (next_left, bottom + height / 2))
        else:  # around the corner
            half = (bottom + next_bottom + height) / 2
            x, to = left + width / 2, next_left + width / 2
            axes.plot([x, x, to], [bottom, half, half], color=INK, linewidth=1.3, solid_joinstyle="round")
            arrow(axes, (to, half), (to, next_bottom + height))


def draw(path: Path = PICTURE) -> None:
    figure = Figure(figsize=(13, 10.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13), ylim=(0.15, 10.7))
    axes.axis("off")
    rooms(axes)
    batch(axes)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    draw()
