"""Draws docs/img/concepts_*.png: the names of each setting, the cells that a metric reads, what a method keeps."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "img"
INK, GREY, PALE = "#22303c", "#75828d", "#eef1f4"
TASKS = ["#9cc4ea", "#f6c28b", "#a9d8a6"]

# setting: names among which a test image of task 2 of 3 is scored after task 3, by task
SETTINGS = {
    "class-il": ("all names seen so far", [True, True, True], "classes"),
    "task-il": ("the names of its own task", [False, True, False], "classes"),
    "domain-il": ("the same names in every task", [True, True, True], "domains"),
    "MTIL, scoring domain": ("the names of its domain", [False, True, False], "domains with names of their own"),
    "X-TAIL, scoring all": ("the names of all domains", [True, True, True], "domains with names of their own"),
    "questions": ("all answers of the vocabulary", [True, True, True], "kinds of questions"),
}
CELLS = {  # metric -> the cells (row, column) of a 4 x 4 matrix that it reads
    "last: mean of the last row": [(3, j) for j in range(4)],
    "average: mean of the row means": [(t, j) for t in range(4) for j in range(t + 1)],
    "forgetting: best earlier minus last": [(t, j) for j in range(3) for t in range(j, 4)],
    "transfer: before a task is trained": [(t, j) for t in range(4) for j in range(t + 1, 4)],
}
KEPT = {
    "images": "er, derpp, icarl: whole samples",
    "masked images + words": "exemplar-masking",
    "one generator per class": "cgil",
    "statistics": "ncm, slda, ridge, ranpac: sums of features",
    "prompts or adapters": "l2p, clumo, lora, ease",
    "a copy of the network": "lwf, zscl, mulki",
}


def canvas(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def cell(axes, left: float, bottom: float, width: float, height: float, color: str, text: str = "") -> None:
    axes.add_patch(Rectangle((left, bottom), width, height, facecolor=color, edgecolor="white", linewidth=2))
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def settings() -> Figure:
    figure, axes = canvas(10, 4.6)
    axes.text(
        0.2, 4.25, "A test image of task 2, after task 3: among which names is it scored?", fontsize=13, color=INK
    )
    for i, (name, (text, scored, tasks)) in enumerate(SETTINGS.items()):
        bottom = 3.45 - 0.65 * i
        axes.text(0.2, bottom + 0.22, name, fontsize=11, weight="bold", color=INK, va="center")
        for task, used in enumerate(scored):
            cell(axes, 2.9 + 0.95 * task, bottom, 0.9, 0.45, TASKS[task] if used else PALE, f"task {task + 1}")
        axes.text(5.95, bottom + 0.31, text, fontsize=10.5, color=INK, va="center")
        axes.text(5.95, bottom + 0.09, f"tasks are {tasks}", fontsize=9, color=GREY, va="center")
    return figure


def matrix() -> Figure:
    figure, axes = canvas(10, 3.4)
    axes.text(0.2, 3.1, "R[t, j]: accuracy on test set j after training on task t", fontsize=13, color=INK)
    for i, (name, read) in enumerate(CELLS.items()):
        left = 0.45 + 2.4 * i
        for t in range(4):
            axes.text(left - 0.12, 2.25 - 0.45 * t, str(t + 1), fontsize=9, color=GREY, ha="center", va="center")
            axes.text(left + 0.22 + 0.45 * t, 2.62, str(t + 1), fontsize=9, color=GREY, ha="center", va="center")
            for j in range(4):
                cell(axes, left + 0.45 * j, 2.03 - 0.45 * t, 0.43, 0.43, TASKS[0] if (t, j) in read else PALE)
        head, tail = name.split(": ")
        axes.text(left + 0.9, 0.42, head, fontsize=11, weight="bold", ha="center", color=INK)
        axes.text(left + 0.9, 0.18, tail, fontsize=9, ha="center", color=GREY)
    return figure


def memory() -> Figure:
    figure, axes = canvas(10, 2.5)
    axes.text(0.2, 2.2, "What is carried from one task to the next (all of it is counted in stored_bytes)", fontsize=13)
    for i, (what, who) in enumerate(KEPT.items()):
        left, bottom = 0.2 + 3.25 * (i % 3), 1.15 - 0.9 * (i // 3)
        axes.add_patch(Rectangle((left, bottom), 3.1, 0.75, facecolor=TASKS[i % 3], edgecolor="white"))
        axes.text(left + 0.12, bottom + 0.5, what, fontsize=11, weight="bold", color=INK, va="center")
        axes.text(left + 0.12, bottom + 0.2, who, fontsize=9, color=INK, va="center")
    return figure


if __name__ == "__main__":
    for draw in (settings, matrix, memory):
        path = PICTURES / f"concepts_{draw.__name__}.png"
        draw().savefig(path)
        print(path)
