"""CluMo against plain loops written from its equations: both stages, routing, answers, and the controls."""

import math

import pytest
import torch

from tests import contract
from tests.test_clumo import batch_of, begun

LR, KD = 0.1, 0.7


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


# loops


def attention(x: torch.Tensor, block) -> torch.Tensor:
    """Rows of x (S, W) after attention to all rows, head by head and row by row."""
    width, size = x.shape[1], x.shape[1] // block.heads
    qkv = x @ block.qkv.weight.T + block.qkv.bias
    out = []
    for row in range(len(x)):
        heads = []
        for h in range(block.heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = qkv[row, :width][part], qkv[:, width : 2 * width][:, part], qkv[:, 2 * width :][:, part]
            weight = torch.stack([(q * key).sum() / math.sqrt(size) for key in k]).exp()
            heads.append((weight[:, None] * v).sum(0) / weight.sum())
        out.append(torch.cat(heads))
    return torch.stack(out) @ block.out.weight.T + block.out.bias


def state_of(fusion, image, text, prompts) -> torch.Tensor:
    """[CLS ; general ; prompt ; image ; question] through the fusion -> state (W,) of CLS."""
    parts = [
        fusion.cls.reshape(1, -1),
        prompts + fusion.kinds[0].reshape(1, -1),
        fusion.image_in(image) + fusion.kinds[1].reshape(1, -1),
        fusion.text_in(text) + fusion.kinds[2].reshape(1, -1),
    ]
    x = torch.cat(parts)
    for block in fusion.blocks:
        x = x + attention(block.ln_1(x), block)
        x = x + block.mlp(block.ln_2(x))
    return fusion.norm(x)[0]


def nearest(x: torch.Tensor, keys: torch.Tensor) -> int:
    far = [sum((a - b) ** 2 for a, b in zip(x.tolist(), key.tolist(), strict=True)) for key in keys]
    return far.index(min(far))


def states_by_loop(model, batch, pools: list[int]) -> list[torch.Tensor]:
    found = []
    for b, t in enumerate(pools):
        i, j = nearest(batch.visual[b], model.visual_keys[t]), nearest(batch.textual[b], model.text_keys[t])
        prompt = model.prompts[t][j * model.visual_keys.shape[1] + i]
        words = batch.text[b][batch.seen[b]]
        found.append(state_of(model.net.fusion, batch.image[b], words, torch.cat([model.general[t], prompt])))
    return found


def log_softmax(z: list) -> list:
    total = sum(torch.exp(v) for v in z)
    return [v - torch.log(total) for v in z]


def loss_by_loop(model, batch, labels, kind: str, kd: float) -> torch.Tensor:
    """CE of the answer + kd * distance of old answers' logits to the previous head's on the same state."""
    answers, old = model.head.answers.tolist(), len(model.teacher)
    states = states_by_loop(model, batch, [1] * len(labels))
    total, away = 0.0, 0.0
    for state, label in zip(states, labels.tolist(), strict=True):
        logits = [(w * state).sum() + b for w, b in zip(model.head.weight, model.head.bias, strict=True)]
        total = total - log_softmax(logits)[answers.index(label)]
        before = [(row[:-1] * state).sum().detach() + row[-1] for row in model.teacher]
        if kind == "mse":
            away = away + sum((z - w) ** 2 for z, w in zip(logits, before, strict=False)) / old
        else:  # 4 KL(previous || now) of softmaxes at temperature 2
            now, then = log_softmax([z / 2 for z in logits[:old]]), log_softmax([w / 2 for w in before])
            away = away + 4 * sum(torch.exp(q) * (q - p) for p, q in zip(now, then, strict=True))
    return (total + kd * away) / len(labels)


def second_task(**flags) -> contract.Toy:
    """The second task has begun, the head has moved away from the previous one, both pools differ."""
    toy = begun(tasks=2, optimizer="sgd", lr=LR, optim_wd=0, fusion_train="first", prompt_init=1.0, **flags)
    torch.manual_seed(3)
    with torch.no_grad():
        toy.model.head.weight.add_(torch.randn_like(toy.model.head.weight))
        toy.model.head.bias.add_(torch.randn_like(toy.model.head.bias))
    return toy


# stage 1


def blobs(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (n, d) at distance about sqrt(d) from the three centers (3, d) that they lie around."""
    rng = torch.Generator().manual_seed(seed)
    true = 20 * torch.randn(3, d, generator=rng)
    return true[torch.arange(n) % 3] + torch.randn(n, d, generator=rng), true


@pytest.mark.parametrize("keys", ["kmeans", "random"])
def test_keys_are_centres_of_clusters_and_with_random_samples(keys):
    model = contract.build(
        "clumo", "toy-pairs", n_visual_keys=3, n_text_keys=3, keys=keys, kmeans_iters=50, kmeans_batch=64
    ).model
    (visual, true_visual), (textual, true_text) = blobs(600, 64, 0), blobs(600, 64, 1)
    model.add_keys(visual, textual, 0)
    for found, x, true in ((model.visual_keys[0], visual, true_visual), (model.text_keys[0], textual, true_text)):
        if keys == "random":
            assert all((x == key).all(1).any() for key in found) and len(found.unique(dim=0)) == 3
            continue
        far = torch.tensor([min(float((key - centre).norm()) for key in found) for centre in true])
        assert far.max() < 0.5 * 64**0.5, "a sample is sqrt(64) away from the centre of its cluster"


def test_random_keys_where_there_are_fewer_samples_than_keys():
    model = contract.build("clumo", "toy-pairs", n_visual_keys=4, keys="random").model
    x = torch.randn(3, 8)
    model.add_keys(x, x, 0)
    assert model.visual_keys.shape == (1, 4, 8) and len(model.visual_keys[0].unique(dim=0)) == 3


# stage 2


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_step_is_that_of_loops(kind):
    toy = second_task(kd_type=kind, kd_weight=KD)
    model, (inputs, labels, _) = toy.model, batch_of(toy)
    batch = model.read(inputs)
    wanted = loss_by_loop(model, batch, labels, kind, KD)
    plain = loss_by_loop(model, batch, labels, kind, 0.0)
    assert (wanted - plain).abs() > 0.01, "the distance counts"
    moved = [model.prompts[1], model.general[1], model.head.weight, model.head.bias]
    grads = torch.autograd.grad(wanted, moved)
    before = [p.detach().clone() for p in moved]
    fixed = [
        p.detach().clone() for p in (*model.net.fusion.parameters(), model.prompts[0], model.general[0], model.teacher)
    ]
    loss = model.meta_observe(inputs, labels, inputs, epoch=0)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-4, atol=1e-5)
    for parameter, start, grad in zip(moved, before, grads, strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(parameter.detach(), start - LR * grad, rtol=1e-4, atol=1e-5)
    after = (*model.net.fusion.parameters(), model.prompts[0], model.general[0], model.teacher)
    assert all(torch.equal(a, b) for a, b in zip(fixed, after, strict=True))


def test_the_teacher_is_the_head_at_the_end_of_the_task_before():
    toy = begun(tasks=2)
    model = toy.model
    for batch in toy.dataset.train_loader:
        model.meta_observe(*batch[:3], epoch=0)
    model.meta_end_task(toy.dataset)
    assert torch.equal(model.teacher[:, :-1], model.head.weight) and torch.equal(model.teacher[:, -1], model.head.bias)
    assert len(model.teacher) == 5 and not model.teacher.requires_grad


# test time


@pytest.mark.parametrize("head", ["shared", "routed"])
@pytest.mark.parametrize("rule", ["centre", "nearest"])
def test_answers_are_those_of_loops(rule, head):
    toy = second_task(route_rule=rule, head=head)
    model = toy.model
    model.meta_end_task(toy.dataset)
    with torch.no_grad():
        model.prompts[0].add_(1.0)
    references = torch.cat(
        [model.references(loader.dataset, t)[:4] for t, loader in enumerate(toy.dataset.test_loaders)]
    )
    batch = model.read(references)
    places = ("visual_centres", "text_centres") if rule == "centre" else ("visual_keys", "text_keys")
    scale = [sum(float(model.spreads[t, m]) for t in range(2)) / 2 for m in range(2)]
    pools = []
    for b in range(len(references)):
        totals = []
        for t in range(2):
            least = [
                min(float(((x[b] - key) ** 2).sum()) for key in getattr(model, name)[t])
                for x, name in ((batch.visual, places[0]), (batch.textual, places[1]))
            ]
            totals.append(least[0] / scale[0] + least[1] / scale[1])
        pools.append(totals.index(min(totals)))
    assert len(set(pools)) == 2, "both pools are in use"
    with torch.no_grad():
        states = states_by_loop(model, batch, pools)
        found = model.answers(references, "key")
    for row, (state, t) in enumerate(zip(states, pools, strict=True)):
        for place, answer in enumerate(model.head.answers.tolist()):
            bank = (
                model.head_bank[t, place]
                if head == "routed"
                else torch.cat([model.head.weight[place], model.head.bias[place][None]])
            )
            wanted = (bank[:-1] * state).sum() + bank[-1]
            torch.testing.assert_close(found[row, answer], wanted, rtol=1e-3, atol=1e-4)


# controls


def test_without_prompts_a_head_is_trained_on_the_frozen_fusion():
    toy = second_task(prompt_len=0, general_prompt_len=0, kd_weight=KD)
    model, (inputs, labels, _) = toy.model, batch_of(toy)
    batch = model.read(inputs)
    bare = model.net.fusion(batch.image, batch.text, batch.seen)
    torch.testing.assert_close(model.states(batch, torch.ones_like(labels), torch.zeros_like(labels)), bare)
    with torch.no_grad():
        torch.testing.assert_close(states_by_loop(model, batch, [1] * len(labels)), list(bare), rtol=1e-4, atol=1e-5)
    before = model.head.weight.clone()
    model.meta_observe(inputs, labels, inputs, epoch=0)
    assert not torch.equal(model.head.weight, before) and sum(p.numel() for p in (*model.prompts, *model.general)) == 0


@pytest.mark.parametrize("flags", [{"prompt_len": 0}, {"prompt_len": 0, "general_prompt_len": 0}, {"keys": "random"}])
def test_controls_run_to_their_end(flags):
    toy = contract.run("clumo", "toy-pairs", **flags)
    assert contract.logits(toy)[:, :9].isfinite().all()


# decay


@pytest.mark.parametrize("name", ["clumo", "exemplar-masking"])
def test_decay_leaves_out_vectors_unless_asked(name):
    for decayed in (0, 1):
        toy = contract.build(name, "toy-pairs", optimizer="sgd", lr=1e-3, optim_wd=0.5, decay_vectors=decayed)
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
        groups = toy.model.opt.param_groups
        rates = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        sizes = {id(p): p.dim() for p in toy.model.parameters()}
        assert {1} < set(sizes.values()) and len(rates) > 4
        for p, rate in rates.items():
            assert rate == (0.5 if decayed or sizes[p] >= 2 else 0.0)


@pytest.mark.parametrize("name", ["clumo", "exemplar-masking"])
def test_decay_is_off_on_vectors_by_default(name):
    """Two steps of the same gradient, with and without decay: only matrices differ."""
    ends = []
    for decay in (0.0, 5.0):
        toy = contract.build(name, "toy-pairs", optimizer="sgd", lr=0.01, optim_wd=decay, fusion_width=16)
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
        toy.model.meta_begin_epoch(0, toy.dataset)
        inputs, labels, plain = next(iter(toy.dataset.train_loader))
        toy.model.meta_observe(inputs, labels, plain, epoch=0)
        ends.append({n: p.detach().clone() for n, p in toy.model.named_parameters() if p.requires_grad and p.numel()})
    for key, p in ends[0].items():
        assert torch.allclose(p, ends[1][key], atol=1e-6) == (p.dim() < 2), key


def test_mean_keys_leave_padding_out():
    model = contract.build("clumo", "toy-pairs", key_feature="mean").model
    image, text = torch.randn(2, 5, model.net.vision_width), torch.randn(2, 4, model.net.text_width)
    tokens = torch.tensor([[1, 9, 0, 0], [1, 2, 3, 9]])  # the end has the largest id
    found = model.fused(image, text, tokens, None)
    torch.testing.assert_close(found.visual, sum(image[:, k] for k in range(5)) / 5)
    torch.testing.assert_close(found.textual[0], (text[0, 0] + text[0, 1]) / 2)
    torch.testing.assert_close(found.textual[1], sum(text[1]) / 4)
