"""Evaluation: which columns count, which arguments the model gets, and independence of the batches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import ArraySamples
from tests.toys import Linear, ToyDomains, ToyStream, toy_args
from utils.engine.evaluate import evaluate, evaluate_tasks, mask_classes, only_columns
from utils.pair import Pair
from utils.passes import eval_batch_size


class Recorder(nn.Module):
    """Logits looked up by the first pixel of the image; notes how it was called."""

    COMPATIBILITY = ["class-il", "task-il"]
    device = torch.device("cpu")

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table, self.calls, self.given, self.modes = table, 0, [], []

    def forward(self, x, *rest):
        self.calls += 1
        self.given.append(rest)
        self.modes.append(self.training)
        self.last = self.table[x[:, 0, 0, 0].mul(255).round().long()]
        return self.last

    def future_forward(self, x):
        return self.table[x[:, 0, 0, 0].mul(255).round().long()].flip(1)

    def future_variants(self, x):
        return {}

    def cached_inputs(self, loader):
        return None

    def get_debug_iters(self):
        return 5


class Number:
    """Images carry their own number in the first pixel; four test images of each of six classes."""

    def load(self, train):
        found = super().load(train)
        images = found.data.clone()
        images[:, 0, 0, 0] = torch.arange(len(found))
        return ArraySamples(images, found.targets)


class Numbered(Number, ToyStream):
    pass


class NumberedDomains(Number, ToyDomains):
    pass


def logits(n: int = 24, classes: int = 6) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(4))


def at_task(task: int, stream_class=Numbered, **changes):
    stream = stream_class(toy_args(**changes))
    for _ in range(task + 1):
        stream.get_data_loaders()
    return stream


def test_scores_by_hand():
    """Task 1 of classes (3, 1, 2): class-IL among four columns, task-IL among the task's own."""
    stream, table = at_task(1), logits()
    samples = stream.samples(False)
    found = evaluate(Recorder(table), stream, return_loss=True)
    class_il, task_il, losses, count = [], [], 0.0, 0
    for first, end in ((0, 3), (3, 4)):
        hits = own_hits = total = 0
        for row, label in zip(table.tolist(), samples.targets.tolist(), strict=True):
            if first <= label < end:
                total += 1
                hits += max(range(4), key=lambda c, row=row: row[c]) == label
                own_hits += max(range(first, end), key=lambda c, row=row: row[c]) == label
                losses += math.log(sum(math.exp(v) for v in row[:4])) - row[label]
        class_il.append(100 * hits / total), task_il.append(100 * own_hits / total)
        count += total
    assert found[0] == pytest.approx(class_il) and found[1] == pytest.approx(task_il)
    assert found[1][1] == 100  # a task of one class
    assert found[2] == pytest.approx(losses / count, rel=1e-5)
    assert evaluate(Recorder(table), stream, last=True) == (pytest.approx(class_il[1:]), pytest.approx(task_il[1:]))


def test_columns_not_yet_seen_do_not_count():
    stream, table = at_task(0), logits()
    changed = table.clone()
    changed[:, 3:] += 100
    assert evaluate(Recorder(table), stream) == evaluate(Recorder(changed), stream)
    changed[:, :3] = changed[:, [1, 2, 0]]
    assert evaluate(Recorder(table), stream) != evaluate(Recorder(changed), stream)


def test_logits_are_never_changed_in_place():
    stream, table = at_task(2), logits()
    model, before = Recorder(table), table.clone()

    class Same(Recorder):
        """Returns one tensor of its own, always the same."""

        def forward(self, x, *rest):
            return self.table[: len(x)]

        def future_forward(self, x):
            return self.table[: len(x)]

    evaluate(model, stream, return_loss=True)
    evaluate_tasks(Same(table), stream, dict(enumerate(stream.test_loaders)), future=True)
    assert torch.equal(table, before) and torch.isfinite(model.last).all()
    assert torch.equal(mask_classes(table, stream, 1), only_columns(table, 3, 4)) and torch.equal(table, before)
    masked = mask_classes(table, stream, 1)
    assert torch.equal(masked[:, 3], table[:, 3]) and torch.isneginf(masked[:, [0, 1, 2, 4, 5]]).all()


def test_one_forward_serves_class_il_and_task_il():
    stream = at_task(2, eval_batch_size=5)
    model = Recorder(logits())
    evaluate(model, stream, return_loss=True)
    assert model.calls == 3 + 1 + 2  # ceil(12/5) + ceil(4/5) + ceil(8/5)


def test_eval_mode_inside_and_the_old_mode_after():
    for training in (True, False):
        model = Recorder(logits()).train(training)
        evaluate(model, at_task(1))
        assert not any(model.modes) and model.training is training

    class Broken(Recorder):
        def forward(self, x, *rest):
            raise RuntimeError("broken")

    model = Broken(logits()).train()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, at_task(0))
    assert model.training


@pytest.mark.parametrize(
    "settings, told",
    [
        (["class-il", "task-il"], False),
        (["general-continual"], False),
        (["domain-il", "task-il"], False),
        (["task-il"], True),
    ],
)
def test_the_task_number_is_for_pure_task_il_models(settings, told):
    stream, model = at_task(2), Recorder(logits())
    model.COMPATIBILITY = settings
    class_il, task_il = evaluate(model, stream)
    if told:
        assert [given[0].unique().tolist() for given in model.given] == [[0], [1], [2]]
        assert [len(given[0]) for given in model.given] == [12, 4, 8]
        assert class_il == [0, 0, 0] and any(task_il)
    else:
        assert all(given == () for given in model.given)


class Net(nn.Module):
    """A real network with BatchNorm as a model."""

    COMPATIBILITY = Recorder.COMPATIBILITY
    device = torch.device("cpu")
    cached_inputs, get_debug_iters = Recorder.cached_inputs, Recorder.get_debug_iters

    def __init__(self):
        super().__init__()
        self.net = Linear(6, 6, norm=True)

    def forward(self, x):
        return self.net(x)


def test_batches_do_not_matter():
    """Batch sizes 1, 3 and all give the same; a shuffled order gives the same scores, sample by sample."""
    model = Net().train()
    results = {
        size: evaluate_tasks(model, s, dict(enumerate(s.test_loaders)))
        for size in (1, 3, 100)
        for s in [at_task(2, eval_batch_size=size)]
    }
    for task in range(3):
        one = results[1][task]
        for size in (3, 100):
            other = results[size][task]
            assert (one.class_il, one.task_il, one.count) == (other.class_il, other.task_il, other.count)
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
            for name in ("confidence", "correct", "prediction", "label"):
                assert torch.allclose(one.flat(name).float(), other.flat(name).float(), atol=1e-5)


def test_a_shuffled_test_set_shuffles_what_is_kept():
    stream, model = at_task(2), Net()
    samples = stream.samples(False)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    transform = stream.default_test_transform()

    def scores(rows):
        split = Split(samples, rows, samples.targets[rows], transform, False)
        return evaluate_tasks(model, stream, {2: Loader(split, 5, ("t",), False)})[2]

    straight, shuffled = scores(torch.arange(24)), scores(order)
    assert torch.allclose(straight.flat("confidence")[order], shuffled.flat("confidence"), atol=1e-6)
    assert torch.equal(straight.flat("prediction")[order], shuffled.flat("prediction"))
    assert straight.class_il == shuffled.class_il


def test_future_scores_by_hand():
    """After task 0 (classes 0-2): all names for every task, unseen names only for tasks to come."""
    stream, table = at_task(0), logits()
    samples, model = stream.samples(False), Recorder(table)
    scores = evaluate_tasks(model, stream, dict(enumerate(stream.all_loaders()[1])), future=True)
    future = table.flip(1)  # what future_forward gives
    for task, (first, end) in enumerate(((0, 3), (3, 4), (4, 6))):
        rows = (samples.targets >= first) & (samples.targets < end)
        own, labels = future[rows], samples.targets[rows]
        assert scores[task].percent("all_names") == pytest.approx(100 * (own.argmax(1) == labels).float().mean().item())
        if task == 0:
            assert math.isnan(scores[task].percent("unseen_names"))
            expected = 100 * (table[rows][:, :3].argmax(1) == labels).float().mean().item()
            assert scores[task].percent("class_il") == pytest.approx(expected)
        else:
            among = own[:, 3:].argmax(1) + 3
            assert scores[task].percent("unseen_names") == pytest.approx(100 * (among == labels).float().mean().item())
    assert model.calls == 1  # only the seen task goes through forward


def test_without_future_those_scores_are_missing_not_zero():
    scores = evaluate_tasks(Recorder(logits()), at_task(0), {0: at_task(0).test_loaders[0]})[0]
    assert math.isnan(scores.percent("all_names")) and math.isnan(scores.percent("unseen_names"))


def test_domains_share_their_classes():
    """No task-IL score, and every column counts from the first domain on."""
    stream, table = at_task(1, NumberedDomains), logits()
    class_il, task_il = evaluate(Recorder(table), stream)
    expected = 100 * (table.argmax(1) == stream.samples(False).targets).float().mean().item()
    assert class_il == [pytest.approx(expected)] * 2 and task_il == [0.0, 0.0]


def test_calibration_inputs():
    stream, table = at_task(1), logits()
    scores = evaluate_tasks(Recorder(table), stream, dict(enumerate(stream.test_loaders)))
    for task, (first, end) in enumerate(((0, 3), (3, 4))):
        labels = stream.samples(False).targets
        rows = (labels >= first) & (labels < end)
        chances = F.softmax(table[rows][:, :4].double(), dim=1)
        assert torch.allclose(scores[task].flat("confidence").double(), chances.max(1).values, atol=1e-6)
        assert torch.equal(scores[task].flat("prediction"), chances.argmax(1))
        assert torch.equal(scores[task].flat("correct"), (chances.argmax(1) == labels[rows]).float())
        assert torch.equal(scores[task].flat("label"), labels[rows])


def test_debug_mode_looks_at_a_few_batches():
    stream = at_task(0, debug_mode=True, batch_size=2)
    model = Recorder(logits())
    scores = evaluate_tasks(model, stream, {0: stream.test_loaders[0]})[0]
    assert (model.calls, scores.count) == (5, 10)  # of 12 images in 6 batches
    assert evaluate_tasks(Recorder(logits()), at_task(0, batch_size=2), {0: stream.test_loaders[0]})[0].count == 12


@pytest.mark.parametrize("cached", [False, True])
def test_a_dataset_may_score_in_its_own_way(cached):
    """Soft credit out of a field that travels with the samples, as question answering gives it."""

    class Soft(Numbered):
        def load(self, train):
            found = super().load(train)
            return ArraySamples(found.data, found.targets, credit=torch.linspace(0, 1, len(found)))

        def score(self, outputs, labels, extras):
            return (outputs.argmax(1) == labels) * extras["credit"]

    class Model(Recorder):
        def cached_inputs(self, loader):
            return loader.dataset.data.float() / 255 if cached else None

    stream, table = at_task(0, Soft, eval_batch_size=5), logits()
    labels, credit = stream.samples(False).targets, torch.linspace(0, 1, 24)
    rows = labels < 3
    expected = 100 * credit[rows & (table[:, :3].argmax(1) == labels)].sum() / rows.sum()
    assert evaluate(Model(table), stream)[0] == [pytest.approx(expected.item(), rel=1e-5)]


def test_cached_features_take_the_place_of_images():
    stream = at_task(1)

    class Cached(Recorder):
        def cached_inputs(self, loader):
            return loader.dataset.data[:, 0, 0, 0].float()

        def forward(self, x):
            return self.table[x.long()]

    table = logits()
    assert evaluate(Cached(table), stream) == evaluate(Recorder(table), stream)


def test_the_batch_size_follows_the_size_of_an_image():
    def loader(data):
        return Loader(
            Split(
                ArraySamples(data, [0]),
                torch.tensor([0]),
                torch.tensor([0]),
                at_task(0).default_test_transform(),
                False,
            ),
            8,
            ("t",),
            False,
        )

    small, large = torch.zeros(1, 1, 2, 3, dtype=torch.uint8), torch.zeros(1, 3, 512, 512, dtype=torch.uint8)
    assert eval_batch_size(loader(small), toy_args()) == 512
    assert eval_batch_size(loader(large), toy_args()) == 64 * 2**20 // (3 * 512 * 512 * 4) == 21
    assert eval_batch_size(loader(Pair(large, torch.zeros(1, 8, dtype=torch.long))), toy_args()) == 21
    assert eval_batch_size(loader(large), toy_args(eval_batch_size=3)) == 3
