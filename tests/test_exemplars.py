"""Exemplars: herding against a brute-force search, quotas, and the batches of training with the memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.utils.samples import ArraySamples
from models.icarl import ICarl
from tests import contract
from tests.toys import Linear, ToyStream, random_pairs, toy_args
from utils.batch_transforms import BatchTransform, Normalize
from utils.class_means import class_means
from utils.errors import UserError
from utils.memory.buffer import Buffer, fill_buffer, icarl_replay
from utils.memory.exemplars import exemplar_means, features_of, herd, quotas
from utils.pair import Pair


def greedy(features: np.ndarray, count: int) -> list[int]:
    """iCaRL's algorithm 4 as it is written, in double precision and one candidate at a time."""
    mean, chosen = features.mean(0), []
    for k in range(count):
        errors = {}
        for i in range(len(features)):
            if i not in chosen:
                errors[i] = np.linalg.norm(mean - (features[chosen].sum(0) + features[i]) / (k + 1))
        chosen.append(min(errors, key=errors.get))
    return chosen


@pytest.mark.parametrize("n, d, count", [(9, 3, 9), (20, 5, 7), (1, 2, 1), (12, 2, 5)])
def test_herding_is_the_brute_force_greedy_choice(n, d, count):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert herd(features, count).tolist() == greedy(features.numpy(), count)


def test_herding_prefix_and_range():
    features = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    order = herd(features, 30).tolist()
    assert sorted(order) == list(range(30))  # each row once
    for count in (1, 4, 17):
        assert herd(features, count).tolist() == order[:count]
    assert herd(features, 99).tolist() == order  # at most the number of samples
    assert len(herd(torch.ones(5, 3), 5).unique()) == 5  # equal rows, still each once


def test_herding_beats_a_random_choice():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))

    def miss(rows):
        return (features[rows].mean(0) - features.mean(0)).norm()

    random = [miss(torch.randperm(60, generator=torch.Generator().manual_seed(s))[:10]) for s in range(50)]
    assert miss(herd(features, 10)) < min(random)


@pytest.mark.parametrize("size, classes", [(12, [0, 1, 2]), (13, [2, 0, 1, 5]), (3, [0, 1, 2, 3, 4]), (1, [7])])
def test_quotas_use_every_place(size, classes):
    share = quotas(size, classes)
    assert sum(share.values()) == size and set(share) == set(classes)
    assert max(share.values()) - min(share.values()) <= 1
    assert [share[c] for c in sorted(classes)] == sorted(share.values(), reverse=True)


def stored(buffer: Buffer) -> dict[int, torch.Tensor]:
    images, labels = buffer.get_all_data()
    return {c: images[labels == c] for c in labels.unique().tolist()}


def herded_by_hand(stream: ToyStream, net, label: int, count: int) -> torch.Tensor:
    """The best `count` training images of a class, from the raw samples."""
    samples = stream.samples(True)
    images = samples.data[samples.targets == label].float() / 255
    features = F.normalize(images.flatten(1), dim=1).double().numpy()
    return images[greedy(features, count)]


@pytest.mark.parametrize("codec", ["float", "uint8"])
def test_fill_buffer_keeps_the_best_of_old_classes(codec):
    """After each task every class has its quota, and old classes the first of the order they were herded in."""
    stream, net = ToyStream(toy_args()), Linear(6, 6)
    buffer = Buffer(14, codec=codec)
    counts = []
    for task in range(3):
        stream.get_data_loaders()
        fill_buffer(buffer, stream, task, net=net, use_herding=True, normalize_features=True)
        found = stored(buffer)
        counts.append([len(images) for images in found.values()])
        for label, images in found.items():
            assert torch.equal(images, herded_by_hand(stream, net, label, len(images)))
    assert counts == [[5, 5, 4], [4, 4, 3, 3], [3, 3, 2, 2, 2, 2]]  # 14 places every time


def test_per_class_each_class_has_its_places_from_the_start():
    """12 places for 6 classes: 2 each, so places of later classes are empty until they come."""
    stream, net, counts = ToyStream(toy_args()), Linear(6, 6), []
    buffer = Buffer(13)
    for task in range(3):
        stream.get_data_loaders()
        fill_buffer(buffer, stream, task, net=net, use_herding=True, normalize_features=True, memory_rule="per_class")
        found = stored(buffer)
        counts.append({label: len(images) for label, images in found.items()})
        assert torch.equal(found[0], herded_by_hand(stream, net, 0, 2))  # the same two after each task
    assert counts == [dict.fromkeys(range(n), 2) for n in (3, 4, 6)]
    with pytest.raises(UserError, match="5 is less than one exemplar for each of 6 classes; give at least 6"):
        quotas(5, [0], 6)


@pytest.mark.parametrize("name", ["icarl", "lucir", "bic", "icarl-clip"])
def test_methods_obey_the_memory_rule_or_refuse_before_training(name):
    model = contract.build(name, trained=True, memory_rule="per_class", buffer_size=33).model
    n = model.num_classes
    assert model.buffer.labels[: len(model.buffer)].bincount().tolist() == [33 // n] * n and 33 % n
    with pytest.raises(UserError, match=f"give at least ({n}|{2 * n})"):
        contract.build(name, memory_rule="per_class", buffer_size=n - 1)


def test_fill_buffer_at_random_takes_images_of_the_class_without_augmentation():
    stream, buffer = ToyStream(toy_args()), Buffer(40)
    stream.get_data_loaders()
    torch.manual_seed(0)
    fill_buffer(buffer, stream, 0, required_attributes=["examples", "labels", "task_labels"])
    samples = stream.samples(True)
    assert {c: len(images) for c, images in stored_by(buffer).items()} == {0: 7, 1: 8, 2: 9}  # fewer images than places
    for label, images in stored_by(buffer).items():
        pool = {tuple(image.flatten().tolist()) for image in samples.data[samples.targets == label].float() / 255}
        assert {tuple(image.flatten().tolist()) for image in images} <= pool
    stream.get_data_loaders()
    fill_buffer(buffer, stream, 1, required_attributes=["examples", "labels", "task_labels"])
    assert torch.equal(buffer.task_labels[: len(buffer)], (buffer.labels[: len(buffer)] == 3).long())


def stored_by(buffer: Buffer) -> dict[int, torch.Tensor]:
    images, labels, _ = buffer.get_all_data()
    return {c: images[labels == c] for c in labels.unique().tolist()}


def test_what_fill_buffer_does_not_offer_is_told():
    stream = ToyStream(toy_args())
    stream.get_data_loaders()
    with pytest.raises(UserError, match="not supported"):
        fill_buffer(Buffer(4), stream, 0, extend_equalize_buffer=True)
    with pytest.raises(UserError, match="not examples, logits"):
        fill_buffer(Buffer(4), stream, 0, required_attributes=["examples", "logits"])


def test_features_are_of_the_network_in_eval_mode_and_leave_it_as_it_was():
    net = Linear(6, 3, norm=True).train()
    images = torch.rand(10, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = features_of(net, images, lambda x: x - 0.5, torch.device("cpu"), batch_size=3)
    assert torch.allclose(found, (images.flatten(1) - 0.5) / (1 + 1e-5) ** 0.5)  # running mean 0, variance 1
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    pairs = random_pairs(5)
    found = features_of(Linear(10, 3), pairs, lambda x: 2 * x, torch.device("cpu"))
    assert torch.equal(found, torch.cat((2 * pairs.image.flatten(1), pairs.text.float()), 1))


def test_means_of_rows_by_class():
    rows, labels = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3, 1, 0, 1, 3, 0])
    found = class_means(rows, labels, 5)
    for m in range(2):
        for c in range(5):
            own = [rows[m, i] for i in range(7) if labels[i] == c]
            torch.testing.assert_close(found[m, c], sum(own) / len(own) if own else torch.zeros(3))
    torch.testing.assert_close(class_means(rows[..., 0], labels, 5), found[..., 0])


def test_class_means_go_by_class_id():
    """Memory filled out of order; a class without exemplars uses the task's images, one without images is absent."""
    stream, net = ToyStream(toy_args()), Linear(6, 6)
    stream.get_data_loaders(), stream.get_data_loaders()  # the train loader holds class 3
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(9, 1, 2, 3, generator=draw), torch.tensor([2, 0, 2, 2, 0, 0, 0, 2, 0])
    buffer = Buffer(9)
    buffer.add_data(images, labels=labels)
    means = exemplar_means(net, buffer, stream, 4, None)
    samples = stream.samples(True)
    of_class = {0: images[labels == 0], 2: images[labels == 2], 3: samples.data[samples.targets == 3].float() / 255}
    for label, own in of_class.items():
        mean = F.normalize(own.flatten(1).double(), dim=1).mean(0)
        assert torch.allclose(means[label].double(), mean / mean.norm(), atol=1e-6)
    assert torch.isinf(means[1]).all()


class Model:
    """What icarl_replay reads of a model."""

    def __init__(self, buffer, current_task):
        self.buffer, self.current_task = buffer, current_task


class PairStream(ToyStream):
    def load(self, train):
        plain = super().load(train)
        return ArraySamples(Pair(plain.data, torch.arange(len(plain))[:, None]), plain.targets)


@pytest.mark.parametrize("stream_class, codec", [(ToyStream, "float"), (ToyStream, "uint8"), (PairStream, "uint8")])
def test_replay_serves_task_and_exemplars_once_per_pass(stream_class, codec):
    stream, buffer = stream_class(toy_args()), Buffer(9, codec=codec)
    stream.get_data_loaders()
    net = Linear(6 + (stream_class is PairStream), 6)
    fill_buffer(buffer, stream, 0, net=net, use_herding=True)
    stream.get_data_loaders()
    task_images, task_labels = stream.train_loader.dataset.plain(torch.arange(len(stream.train_loader.dataset)))
    icarl_replay(Model(buffer, 1), stream)
    kept, kept_labels = buffer.get_all_data()
    expected = rows(torch.cat((task_images, kept)), torch.cat((task_labels, kept_labels)))
    assert len(stream.train_loader) == -(-len(expected) // 8)
    orders = []
    for epoch in (0, 1):
        batches = list(stream.train_loader.epoch(epoch))
        images, labels, plain = (torch.cat([b[k] for b in batches]) for k in range(3))
        assert sorted(rows(plain, labels)) == sorted(expected)
        assert rows(images, labels) == rows(plain, labels)  # no augmentation here
        orders.append(labels.tolist())
    assert orders[0] != orders[1]  # shuffled together, anew


def rows(images, labels) -> list[tuple]:
    """One comparable tuple per sample: bytes of the image, text, label."""
    parts = (
        [images.image.mul(255).round().flatten(1), images.text]
        if isinstance(images, Pair)
        else [images.mul(255).round().flatten(1)]
    )
    return [tuple(map(int, row)) for row in torch.cat([*parts, labels[:, None]], dim=1)]


def test_replay_leaves_the_first_task_alone_and_refuses_a_split_of_all():
    stream = ToyStream(toy_args())
    stream.get_data_loaders()
    loader = stream.train_loader
    icarl_replay(Model(Buffer(5), 0), stream)
    icarl_replay(Model(Buffer(5), 1), stream)  # nothing stored
    assert stream.train_loader is loader
    with pytest.raises(UserError, match="expected a fraction below 1"):
        icarl_replay(Model(Buffer(5), 1), stream, val_set_split=1)


def test_icarl_fills_the_same_memory_through_its_hooks():
    """A fixed network (lr 0 means no step): end_task stores what the greedy search finds."""
    args = toy_args(buffer_size=14)
    stream, net = ToyStream(args), Linear(6, 6)
    model = ICarl(net, stream.get_loss(), args, None, stream)
    sizes = []
    for _ in range(3):
        stream.get_data_loaders()
        model.meta_begin_task(stream)
        sizes.append(len(stream.train_loader.dataset))
        model.meta_end_task(stream)
        for label, images in stored(model.buffer).items():
            assert torch.equal(images, herded_by_hand(stream, net, label, len(images)))
    assert sizes == [7 + 8 + 9, 10 + 14, 11 + 12 + 14]


def test_replayed_exemplars_are_augmented_like_the_task():
    stream = ToyStream(toy_args())
    stream.get_data_loaders()
    stream.train_loader.dataset.transform = BatchTransform([Normalize([0.5], [0.25])])
    stored = torch.randint(0, 256, (4, 1, 2, 3), dtype=torch.uint8)
    for images, _, plain in stream.train_loader.with_samples(stored, torch.tensor([0, 1, 2, 0])):
        torch.testing.assert_close(images, (plain - 0.5) / 0.25)
