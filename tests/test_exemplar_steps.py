"""ExemplarMasking against loops written from its equations: masks, herding, budget, replay, distillation, means."""

import copy
import math

import pytest
import torch

from backbone.multimodal import Attention
from tests import contract
from tests.multimodal_toys import CELLS, batch, draw, memory_args, some
from utils.memory.exemplar_memory import ExemplarMemory
from utils.memory.exemplars import herd

LR, KD, T = 0.003, 0.7, 3.0
FLAGS = {
    "optimizer": "sgd",
    "lr": LR,
    "optim_wd": 0,
    "kd_weight": KD,
    "kd_temperature": T,
    "exemplar_aug": "none",
    "fusion_lr": 1.0,
}


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def second_task(**flags) -> tuple[contract.Toy, torch.nn.Module]:
    """The first task is done, the second has begun and the network has moved; and the network of the first."""
    toy = contract.build("exemplar-masking", "toy-pairs", **FLAGS | flags)
    model = toy.model
    for task in range(2):
        toy.dataset.get_data_loaders()
        model.meta_begin_task(toy.dataset)
        model.meta_begin_epoch(0, toy.dataset)
        if task == 0:
            for inputs, labels, plain in toy.dataset.train_loader:
                model.meta_observe(inputs, labels, plain, epoch=0)
            model.meta_end_task(toy.dataset)
    old, rng = copy.deepcopy(model.net), draw(3)
    with torch.no_grad():
        for p in model.net.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
        model.net.classifier.weight.add_(1.2 * torch.randn(model.net.classifier.weight.shape, generator=rng))
    return toy, old


# masks


def uneven(n: int, m: int, b: int = 4) -> Attention:
    shapes = (n,), (m,), (n, m), (m, n)
    return Attention(*(torch.rand(b, *shape, generator=draw(k)) ** 3 for k, shape in enumerate(shapes)))


@pytest.mark.parametrize("direction", ["i2t", "t2i", "both"])
@pytest.mark.parametrize("rule", ["union", "class_only", "context_only"])
def test_masks_are_those_of_loops(rule, direction):
    _, tokens = batch(4)
    m = tokens.ids.shape[1]
    attention = uneven(CELLS, m)
    memory = ExemplarMemory(memory_args(text_rule=rule, direction=direction), 192, CELLS)
    patches, words = memory.masks(attention, tokens)
    for b in range(4):
        a = attention.image[b].tolist()
        kept = [value > sum(a) / CELLS for value in a]
        assert patches[b].tolist() == kept and 4 < sum(kept) < CELLS / 2
        dropped = [i for i in range(CELLS) if not kept[i]]
        end = int(tokens.word_seen[b].sum()) - 1
        own = range(1, end)  # between start and end of text
        looked = {
            "i2t": [sum(float(attention.i2t[b, i, j]) for i in dropped) / len(dropped) for j in range(m)],
            "t2i": [sum(float(attention.t2i[b, j, i]) for i in dropped) / len(dropped) for j in range(m)],
        }
        looked["both"] = [(x + y) / 2 for x, y in zip(looked["i2t"], looked["t2i"], strict=True)]
        by_class = {j for j in own if attention.text[b, j] > sum(float(attention.text[b, k]) for k in own) / len(own)}
        by_context = {j for j in own if looked[direction][j] > sum(looked[direction][k] for k in own) / len(own)}
        wanted = {"union": by_class | by_context, "class_only": by_class, "context_only": by_context}[rule]
        assert len(wanted) >= 2 or len(own) < 4
        if len(wanted) >= 2:
            assert set(words[b].nonzero().flatten().tolist()) == wanted | {0, end}


def test_maps_are_reduced_over_layers_then_heads():
    from backbone.multimodal import reduce

    maps = [torch.rand(2, 3, 5, 5, generator=draw(k)) for k in range(4)]
    for layer, chosen in (("last", [3]), ("first", [0]), ("mean", [0, 1, 2, 3])):
        found, most = reduce(maps, layer, "mean"), reduce(maps, layer, "max")
        for b, i, j in ((0, 1, 2), (1, 4, 0)):
            heads = [sum(float(maps[k][b, h, i, j]) for k in chosen) / len(chosen) for h in range(3)]
            assert float(found[b, i, j]) == pytest.approx(sum(heads) / 3) and float(most[b, i, j]) == pytest.approx(
                max(heads)
            )


# which exemplars


def herd_by_loop(features: torch.Tensor) -> list[int]:
    """Each time the sample that brings the mean of the chosen nearest to the mean of all."""
    points, chosen = features.double().tolist(), []
    mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
    while len(chosen) < len(points):
        best = None
        for row in range(len(points)):
            if row in chosen:
                continue
            group = [points[k] for k in (*chosen, row)]
            away = math.dist(mean, [sum(column) / len(group) for column in zip(*group, strict=True)])
            if best is None or away < best[0]:
                best = away, row
        chosen.append(best[1])
    return chosen


def test_herding_is_that_of_loops():
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=draw(7)), dim=1)
    assert herd(features, 12).tolist() == herd_by_loop(features)


@pytest.mark.parametrize("fill", ["stop", "skip"])
@pytest.mark.parametrize("worth", ["2x", "2.5x", "9000"])
def test_a_class_takes_its_records_in_order_until_its_bytes_are_spent(worth, fill):
    _, tokens = batch(12)
    patches, words = some(tokens, 50)
    patches[::3] = tokens.seen[::3]  # a third of the samples is not masked, so sizes differ
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=draw(7)), dim=1)
    memory = ExemplarMemory(memory_args(buffer_bytes_per_class=worth, budget_fill=fill), 192, CELLS)
    memory.add_class(tokens, 3, features, patches, words, torch.rand(12, CELLS, generator=draw(9)), 1)
    order = herd_by_loop(features)
    full = [9 + CELLS * 192 + 2 * int(tokens.word_seen[row].sum()) for row in order]
    left = {"2x": full[0] + full[1], "2.5x": 2.5 * sum(full[:3]) / 3, "9000": 9000}[worth]
    wanted = []
    for row in order:
        words_kept, positions = int((words[row] & tokens.word_seen[row]).sum()), int(tokens.word_seen[row].sum())
        bits = 0 if words_kept == positions else -(-positions // 8)
        size = 9 + 5 + 192 * int(patches[row].sum()) + 2 * words_kept + bits + 1
        if size <= left:
            left -= size
            wanted.append((row, size))
        elif fill == "stop":
            break
    assert memory.records.sizes.tolist() == [size for _, size in wanted] and len(wanted) > 1
    for place, (row, _) in enumerate(wanted):
        back = memory.records.decode(torch.tensor([place]))
        assert torch.equal(back.patches[0, back.seen[0]], tokens.patches[row, patches[row]])
        assert back.places[0, back.seen[0]].tolist() == patches[row].nonzero().flatten().tolist()


def test_exemplars_are_masked_by_the_network_at_the_end_of_the_task():
    """All samples of a class are encoded without augmentation, herded on unit features of whole samples, masked."""
    toy, net = second_task(buffer_bytes_per_class="3x")
    memory, records = toy.model.memory, toy.model.memory.records
    split = toy.dataset.samples(True)
    net.eval()
    for label in range(3):
        rows = (split.targets == label).nonzero().flatten()
        pairs = split.data[rows]
        pairs.image = pairs.image.float() / 255
        full = toy.model.tokens(pairs, as_bytes=True)
        with torch.no_grad():
            features, attention = net.attend(full, "mean", "mean", "mean")
        order = herd_by_loop(torch.nn.functional.normalize(features, dim=1))
        own = (records.labels == label).nonzero().flatten()
        assert 3 < len(own) <= len(rows)
        for place, row in zip(own.tolist(), order, strict=False):
            back = records.decode(torch.tensor([place]))
            a = attention.image[row].tolist()
            cells = [i for i in range(CELLS) if a[i] > sum(a) / CELLS]
            assert back.places[0, back.seen[0]].tolist() == cells
            assert torch.equal(back.patches[0, back.seen[0]], full.patches[row, cells])
    assert len(memory) == len(records.labels)


def test_end_task_looks_at_one_batch_of_images_at_a_time(monkeypatch):
    toy = contract.build("exemplar-masking", "toy-pairs", batch_size=3)
    sizes, real = [], type(toy.model).tokens
    monkeypatch.setattr(
        type(toy.model), "tokens", lambda self, x, as_bytes=False: (sizes.append(len(x)), real(self, x, as_bytes))[1]
    )
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    toy.model.meta_end_task(toy.dataset)
    assert (
        max(sizes) == 3
        and sum(sizes) == sum(contract.PER_CLASS[:3])
        and len(toy.model.memory.records.labels.unique()) == 3
    )


# a step


def test_a_step_is_that_of_loops():
    """CE of new samples and exemplars among seen classes + kd * KL(previous || now), temperature T, on old classes."""
    toy, old = second_task(replay_ratio=0)
    model, (inputs, labels, plain) = toy.model, next(iter(toy.dataset.train_loader))
    rows = model.rows_to_replay(len(labels))
    assert len(rows) > 1
    samples = [(model.tokens(inputs).rows(slice(i, i + 1)), int(labels[i])) for i in range(len(labels))]
    samples += [
        (model.memory.records.decode(rows[i : i + 1]), int(model.memory.records.labels[rows[i]]))
        for i in range(len(rows))
    ]
    assert {label for _, label in samples[: len(labels)]} <= {3, 4} and {
        label for _, label in samples[len(labels) :]
    } <= {0, 1, 2}
    total, away, turned = 0.0, 0.0, 0.0
    for tokens, label in samples:
        logits = model.net(tokens)[0]
        with torch.no_grad():
            before = [torch.exp(z / T) for z in old(tokens)[0, :3]]
        total = total - logits[label] + torch.log(sum(torch.exp(logits[c]) for c in range(5)))
        now = [torch.exp(logits[c] / T) for c in range(3)]
        for c in range(3):
            p, q = before[c] / sum(before), now[c] / sum(now)
            away, turned = away + p * (torch.log(p) - torch.log(q)), turned + q * (torch.log(q) - torch.log(p))
    wanted = (total + KD * away) / len(samples)
    away, turned = float(away.detach()), float(turned.detach())
    assert KD * away / len(samples) > 0.01 and KD * abs(away - turned) / len(samples) > 0.01, (
        "the distance and its direction count"
    )
    trained = {name: p for name, p in model.net.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    grads = dict(zip(trained, torch.autograd.grad(wanted, list(trained.values())), strict=True))
    loss = model.meta_observe(inputs, labels, plain, epoch=0)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert {"classifier.weight", "pooled.weight"} <= set(trained) and any(name.endswith("gamma") for name in trained)
    for name, p in trained.items():
        torch.testing.assert_close(p.detach(), before[name] - LR * grads[name], rtol=1e-3, atol=2e-5)


def test_there_is_no_distillation_and_no_replay_in_the_first_task():
    toy = contract.build("exemplar-masking", "toy-pairs", **FLAGS)
    model = toy.model
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    model.meta_begin_epoch(0, toy.dataset)
    inputs, labels, plain = next(iter(toy.dataset.train_loader))
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(model.net(model.tokens(inputs))[:, :3], labels)
    torch.testing.assert_close(model.meta_observe(inputs, labels, plain, epoch=0), wanted)


def test_each_exemplar_is_replayed_once_an_epoch():
    toy, _ = second_task()
    model, seen = toy.model, []
    for step in range(len(toy.dataset.train_loader)):
        model._epoch_iteration = step
        seen += model.rows_to_replay(4).tolist()
    assert sorted(seen) == list(range(len(model.memory))) and seen != sorted(seen)
    model.args.replay_ratio = 0.5
    assert len(model.rows_to_replay(4)) == 2


# replay


@pytest.mark.parametrize("rule", ["mean", "random"])
def test_lent_patches_are_those_that_attention_leaves_out(rule):
    """Whatever the arm's own mask rule is: else random masks would lend the new image's object."""
    toy, _ = second_task(exemplar_aug="background", aug_p=1.0, mask_rule=rule)
    model = toy.model
    inputs, labels, _ = next(iter(toy.dataset.train_loader))
    fresh, rows = model.tokens(inputs), torch.arange(len(model.memory))
    own = model.memory.records.decode(rows)
    found, kinds = model.replayed(rows, fresh)
    attention = model.attend(fresh)[1].image
    assert torch.equal(kinds, model.memory.records.labels)
    lent = 0
    for i in range(len(rows)):
        j = i % len(labels)
        a = attention[j].tolist()
        spare = {cell for cell in range(CELLS) if a[cell] <= sum(a) / CELLS}
        kept = set(own.places[i, own.seen[i]].tolist())
        assert set(found.places[i, found.seen[i]].tolist()) == kept | spare
        pixels = model.net.in_bytes(fresh.patches[j])
        for patch, cell in zip(found.patches[i, found.seen[i]], found.places[i, found.seen[i]].tolist(), strict=True):
            if cell in kept:
                assert torch.equal(patch, own.patches[i, own.places[i].tolist().index(cell)])
            else:
                assert torch.equal(patch, pixels[cell])
                lent += 1
    assert lent > 0


# nearest mean


def test_nearest_means_are_those_of_the_exemplars():
    toy, _ = second_task()
    model = toy.model
    model.eval()
    with torch.no_grad():
        model.rows = None
        pairs = next(iter(toy.dataset.test_loaders[0]))[0]
        tokens = model.tokens(pairs)
        found = model.answer(model.net.features(tokens), "nme")
        means = []
        for label in range(3):
            rows = (model.memory.records.labels == label).nonzero().flatten()
            total = torch.zeros(model.net.feature_dim)
            for row in rows:
                f = model.net.features(model.memory.records.decode(row[None]))[0]
                total = total + f / f.square().sum().sqrt()
            means.append(total / total.square().sum().sqrt())
        for b in range(len(pairs)):
            f = model.net.features(tokens.rows(slice(b, b + 1)))[0]
            f = f / f.square().sum().sqrt()
            for label in range(3):
                assert float(found[b, label]) == pytest.approx(
                    -float((f - means[label]).square().sum()), rel=1e-3, abs=1e-5
                )
