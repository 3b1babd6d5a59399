"""The loops that bench_engine.py compares the engine with, as one would write them by hand in plain PyTorch."""

import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

BATCH, BUFFER, LR, ALPHA, BETA, EVAL_BATCH = 32, 200, 0.03, 0.1, 0.5, 512
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)


class Replay:
    """er and derpp: a network, SGD, a few tensors as memory. Images with 3 channels are augmented as in CIFAR."""

    def __init__(self, method: str, net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor):
        self.method, self.net, self.images, self.labels = method, net, images, labels
        self.opt = torch.optim.SGD(net.parameters(), lr=LR)
        self.memory, self.memory_labels = torch.zeros(BUFFER, *images.shape[1:]), torch.zeros(BUFFER, dtype=torch.long)
        self.memory_logits, self.seen = torch.zeros(BUFFER, 10), 0
        self.mean, self.std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)

    def augment(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Pad by 4, crop 32 x 32, flip, normalize; u (B, 3) uniform."""
        if x.shape[1] == 1:
            return x
        x, start = F.pad(x, [4] * 4), (u[:, :2] * 9).long().clamp_(max=8)
        rows, columns = (start[:, k, None] + torch.arange(32) for k in (0, 1))
        x = x.gather(2, rows[:, None, :, None].expand(-1, 3, -1, 40))
        x = x.gather(3, columns[:, None, None, :].expand(-1, 3, 32, -1))
        x = torch.where((u[:, 2:] < 0.5)[:, :, None, None], x.flip(-1), x)
        return (x - self.mean) / self.std

    def draw(self) -> tuple[torch.Tensor, ...]:
        held = min(self.seen, BUFFER)
        rows = torch.from_numpy(np.random.choice(held, min(BATCH, held), replace=False))
        x = self.augment(self.memory[rows], torch.rand(len(rows), 3))
        return x, self.memory_labels[rows], self.memory_logits[rows]

    def store(self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor | None) -> None:
        """Reservoir sampling, the whole batch at once."""
        count = self.seen + np.arange(len(labels))
        places, full = count.copy(), count >= BUFFER
        if full.any():
            places[full] = np.random.randint(0, count[full] + 1)
        self.seen += len(labels)
        last = {place: k for k, place in enumerate(places.tolist()) if place < BUFFER}
        places, kept = list(last), list(last.values())
        if not kept:
            return
        self.memory[places], self.memory_labels[places] = images[kept], labels[kept]
        if logits is not None:
            self.memory_logits[places] = logits[kept]

    def step(self, rows: torch.Tensor, u: torch.Tensor) -> None:
        plain, labels = self.images[rows].float().div_(255), self.labels[rows]
        x, y, logits = self.augment(plain, u), labels, None
        self.opt.zero_grad()
        if self.method == "er":
            if self.seen:
                old_x, old_y, _ = self.draw()
                x, y = torch.cat((x, old_x)), torch.cat((y, old_y))
            loss = F.cross_entropy(self.net(x), y)
        else:
            logits = self.net(x)
            loss = F.cross_entropy(logits, y)
            if self.seen:
                old_x, _, old_logits = self.draw()
                loss = loss + ALPHA * F.mse_loss(self.net(old_x), old_logits)
                old_x, old_y, _ = self.draw()
                loss = loss + BETA * F.cross_entropy(self.net(old_x), old_y)
            logits = logits.detach()
        loss.backward()
        self.opt.step()
        self.store(plain, labels, logits)


def evaluate(
    bare: Replay, images: torch.Tensor, rows_of_tasks: list[torch.Tensor], labels: torch.Tensor
) -> list[tuple[float, float]]:
    """Correct predictions among the seen classes and among the task's own, for each test set."""
    bare.net.eval()
    hits, seen = [], 2 * len(rows_of_tasks)
    with torch.no_grad():
        for task, rows in enumerate(rows_of_tasks):
            right = torch.zeros(2)
            for part in rows.split(EVAL_BATCH):
                outputs = bare.net((images[part].float().div_(255) - bare.mean) / bare.std)
                right[0] += (outputs[:, :seen].argmax(1) == labels[part]).sum()
                right[1] += (outputs[:, 2 * task : 2 * task + 2].argmax(1) + 2 * task == labels[part]).sum()
            hits.append(tuple(right.tolist()))
    return hits


def live(folder: Path, net: torch.nn.Module, tasks: int) -> None:
    """A short seq-cifar10 run: read the files into two arrays, train a few steps per task, test after each."""
    images, labels = read(folder, [f"data_batch_{k}" for k in range(1, 6)])
    test_images, test_labels = read(folder, ["test_batch"])
    bare = Replay("er", net, images, labels)
    for task in range(tasks):
        net.train()
        rows = torch.nonzero(labels // 2 == task).flatten()
        for part in rows[torch.randperm(len(rows))][: 5 * BATCH].split(BATCH):
            bare.step(part, torch.rand(len(part), 3))
        seen = [torch.nonzero(test_labels // 2 == t).flatten() for t in range(task + 1)]
        evaluate(bare, test_images, seen, test_labels)


def read(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels; one array, filled file by file."""
    tables = []
    for name in names:
        with (folder / name).open("rb") as file:
            tables.append(pickle.load(file, encoding="bytes"))
    tables = [{k if isinstance(k, str) else k.decode(): v for k, v in table.items()} for table in tables]
    images = np.concatenate([table["data"] for table in tables]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor([label for table in tables for label in table["labels"]])
