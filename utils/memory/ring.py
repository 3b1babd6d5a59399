"""A memory divided into one equal part per task; each part keeps the newest samples of its task."""

import torch

from utils.errors import UserError
from utils.memory.buffer import Buffer


class RingBuffer(Buffer):
    """Samples belong to the task in `task_labels`, else to `self.task`, which the method sets."""

    def __init__(self, buffer_size: int, n_tasks: int | None = None, device="cpu"):
        if not isinstance(n_tasks, int):  # RingBuffer(size, device, n_tasks) is also used
            n_tasks, device = (device, n_tasks) if isinstance(device, int) else (1, n_tasks or device)
        super().__init__(buffer_size, device)
        self.task, self.task_number = 0, n_tasks
        self.buffer_portion_size = self.buffer_size // n_tasks
        if not self.buffer_portion_size:
            raise UserError(
                f"--buffer_size {buffer_size} is less than one sample for each of {n_tasks} tasks; raise it"
            )
        self.parts: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.data["examples"]) if self.data else 0

    def is_full(self) -> bool:
        return len(self) >= self.buffer_portion_size * self.task_number

    def add_data(
        self,
        examples,
        labels=None,
        logits=None,
        task_labels=None,
        attention_maps=None,
        true_labels=None,
        sample_selection_scores=None,
    ) -> None:
        """Append the batch to its task's part and drop the oldest of that part."""
        offered = {
            "examples": examples,
            "labels": labels,
            "logits": logits,
            "task_labels": task_labels,
            "true_labels": true_labels,
            "attention_maps": attention_maps,
        }
        offered = {name: value.detach().to(self.device) for name, value in offered.items() if value is not None}
        tasks = torch.full((len(examples),), self.task) if task_labels is None else task_labels.cpu()
        for task in tasks.unique().tolist():
            part, rows = self.parts.setdefault(task, {}), (tasks == task).to(self.device)
            for name, value in offered.items():
                new = torch.cat((part[name], value[rows])) if name in part else value[rows]
                part[name] = new[-self.buffer_portion_size :]
        self.num_seen_examples += len(examples)
        self._join()

    def _join(self) -> None:
        parts = [self.parts[task] for task in sorted(self.parts)]
        self.data = {name: torch.cat([p[name] for p in parts]) for name in (parts[0] if parts else {})}

    def empty(self) -> None:
        super().empty()
        self.parts = {}

    def to(self, device) -> "RingBuffer":
        self.device = torch.device(device)
        self.parts = {t: {n: v.to(self.device) for n, v in part.items()} for t, part in self.parts.items()}
        self._join()
        return self

    def state(self) -> dict:
        return {"parts": self.parts, "seen": self.num_seen_examples, "iteration": self.iteration, "task": self.task}

    def load_state(self, state: dict) -> None:
        self.parts, self.task = state["parts"], state["task"]
        self.num_seen_examples, self.iteration = state["seen"], state["iteration"]
        self.to(self.device)
