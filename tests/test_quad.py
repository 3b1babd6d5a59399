"""QUAD: old questions about new images, answers and maps of the old network; gradient methods on questions."""

import contextlib
import copy
import io
import math
import types

import pytest
import torch
from torch.nn.functional import cross_entropy

import main
from backbone.clip import load_clip
from backbone.fusion import ClipFusion, FusionTransformer
from datasets.tiny_world import streams
from models.quad import Quad, soft_cross_entropy
from tests.toys import ToyStream, toy_args
from utils import cli
from utils.engine.record import read_record
from utils.errors import UserError
from utils.pair import Pair

FLAGS = {"quad_lambda": 0.4, "attention_kept": True, "n_questions": 4}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    clip = load_clip("tiny")
    fusion = FusionTransformer(clip.vision_width, clip.text_width, width=16, layers=2, heads=2)
    return ClipFusion(6, clip, fusion)


def build(net, task=1, **changes) -> Quad:
    """QUAD at the third task of the toy stream, with another old network and four stored questions."""
    args = toy_args(**FLAGS | changes)
    model = Quad(copy.deepcopy(net), cross_entropy, args, None, ToyStream(args))
    model.dataset.get_data_loaders()
    for _ in range(task):
        model._current_task += 1
    model.meta_begin_task(model.dataset)
    if task:
        model.old_net = copy.deepcopy(net).eval().requires_grad_(False)
        with torch.no_grad():
            for p in model.old_net.fusion.parameters():
                p += 0.3 * torch.randn(p.shape)
        model.questions = questions(4, seed=5)
    return model


def questions(n: int, seed: int = 0) -> torch.Tensor:
    """Token ids (n, 7): a start, words, an end with the largest id, padding."""
    ids = torch.randint(1, 60, (n, 7), generator=torch.Generator().manual_seed(seed))
    ids[torch.arange(n), 3 + torch.arange(n) % 4] = 99
    return ids


def batch(n: int = 3) -> tuple[Pair, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return Pair(torch.randn(n, 3, 48, 48, generator=draw), questions(n)), torch.tensor([3, 0, 2])[:n]


def test_cross_entropy_of_distributions_by_loops():
    wanted, own = torch.rand(2, 3, 4).softmax(-1), torch.rand(2, 3, 4).log_softmax(-1)
    total = -sum(float(wanted[i, j, k] * own[i, j, k]) for i in range(2) for j in range(3) for k in range(4))
    assert float(soft_cross_entropy(wanted, own)) == pytest.approx(total / 6, rel=1e-5)


def test_maps_are_those_of_the_blocks_and_answers_do_not_change(net):
    """The first block's map by its own weights: softmax of q . k / sqrt(d) per head, nothing at padding."""
    x, _ = batch()
    logits, maps = net.with_maps(x)
    assert torch.equal(logits, net(x)) and len(maps) == 2
    image, text, seen = net.tokens(x)
    fusion, block = net.fusion, net.fusion.blocks[0]
    parts = [
        fusion.cls.expand(3, 1, -1),
        fusion.image_in(image) + fusion.kinds[1],
        fusion.text_in(text) + fusion.kinds[2],
    ]
    h = block.ln_1(torch.cat(parts, dim=1))
    q, k, _ = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    visible = torch.cat([torch.ones(3, h.shape[1] - 7, dtype=torch.bool), seen], dim=1)
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        scores = (q[..., own] @ k[..., own].mT / 8**0.5).masked_fill(~visible[:, None], -math.inf)
        torch.testing.assert_close(maps[0][:, head], scores.softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_loss_by_hand(net, kept, monkeypatch):
    model = build(net, attention_kept=kept)
    x, y = batch()
    monkeypatch.setattr(torch, "randint", lambda high, shape: torch.tensor([2, 0, 2]))
    asked = Pair(x.image, model.questions[[2, 0, 2]])
    with torch.no_grad():
        new, maps = model.net.with_maps(asked)
        old, old_maps = model.old_net.with_maps(asked)
        seen = model.n_seen_classes
        assert seen == 4
        p, log_q = old[:, :seen].softmax(1), new[:, :seen].log_softmax(1)
        answers = -sum(float(p[i, c] * log_q[i, c]) for i in range(3) for c in range(seen)) / 3
        attention = 0.0
        for a, b in zip(old_maps, maps, strict=True):
            rows = a[..., :] * b.clamp(min=1e-12).log()
            attention -= float(rows.sum()) / (3 * 2 * a.shape[2]) / 2
        wanted = 0.6 * float(cross_entropy(model.net(x)[:, :seen], y)) + 0.4 * (answers + attention * kept)
    assert float(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-4)


def test_without_weight_and_in_the_first_task_it_is_fine_tuning(net):
    (x, y), first, none = batch(), build(net, task=0), build(net, quad_lambda=0.0)
    for model, labels in ((first, torch.tensor([1, 0, 2])), (none, y)):
        wanted = float(cross_entropy(model.net(x)[:, : model.n_seen_classes], labels).detach())
        assert float(model.meta_observe(x, labels, x)) == pytest.approx(wanted, rel=1e-5)


def test_where_the_networks_agree_attention_has_no_gradient(net):
    model = build(net)
    model.old_net.load_state_dict(model.net.state_dict())
    model.eval()
    x = model.asked(batch()[0])
    loss = model.kept(x)
    _, maps = model.net.with_maps(x)
    entropy = sum(-float((m * m.clamp(min=1e-12).log()).sum(-1).mean()) for m in maps) / len(maps)
    p = model.net(x)[:, :4].softmax(1)
    entropy -= float((p * p.log()).sum(1).mean())
    assert float(loss) == pytest.approx(entropy, rel=1e-4) and entropy > 0.1
    gradient = torch.autograd.grad(loss, [p for p in model.net.fusion.parameters()], allow_unused=True)
    assert max(float(g.abs().max()) for g in gradient if g is not None) < 1e-5


def test_distinct_questions_are_kept_and_no_image(net):
    model = build(net, task=0)
    text = questions(6)[[0, 1, 1, 2, 3, 4, 5, 5]]
    split = types.SimpleNamespace(samples=types.SimpleNamespace(data=Pair(torch.rand(8, 3, 4, 4), text)))
    split.rows = torch.tensor([0, 1, 2, 3])
    dataset = types.SimpleNamespace(train_loader=types.SimpleNamespace(dataset=split))
    model.end_task(dataset)
    asked = {tuple(row) for row in text[:4].tolist()}
    assert {tuple(row) for row in model.questions.tolist()} == asked and len(model.questions) == 3
    split.samples.data.text = torch.cat([text, torch.zeros(8, 2, dtype=torch.long)], dim=1)
    split.rows = torch.arange(8)
    model.end_task(dataset)
    assert model.questions.shape == (3 + 4, 9) and not model.questions[:3, 7:].any()
    assert set(model.stored_bytes()) == {"questions", "old_net"}
    assert model.stored_bytes()["questions"] == 8 * 7 * 9


def test_a_network_without_maps_is_refused():
    from tests.toys import Linear

    args = toy_args(**FLAGS)
    with pytest.raises(UserError, match="--attention_kept 0"):
        Quad(Linear(6, 6), cross_entropy, args, None, ToyStream(args))


METHODS = {
    "er": ["--buffer_size", "20"],
    "derpp": ["--buffer_size", "20", "--alpha", "0.3", "--beta", "0.5"],
    "ewc-on": ["--e_lambda", "1", "--gamma", "1"],
    "lwf": [],
    "quad": ["--n_questions", "10"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("questions")


FAST = ("er", "quad")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_gradient_methods_answer_questions(name, folder, monkeypatch):
    """Two small tasks of questions through main.py; the record has a score of each."""
    monkeypatch.setattr(streams, "CLOVE_SIZE", {True: 24, False: 12})
    argv = ["--model", name, "--dataset", "clove-tiny-function", "--backbone", "clip-fusion", *METHODS[name]]
    argv += ["--clip_backbone", "tiny", "--optimizer", "adamw", "--lr", "0.001", "--n_epochs", "1", "--stop_after", "1"]
    argv += ["--batch_size", "12", "--base_path", str(folder / "data"), "--results_path", str(folder / name)]
    with contextlib.redirect_stdout(io.StringIO()):
        main.run(cli.parse([*argv, "--device", "cpu", "--seed", "0", "--non_verbose", "1"]))
    rows = read_record(next((folder / name).rglob("record.jsonl")))
    tasks = [row for row in rows if row["type"] == "task"]
    assert rows[-1]["status"] == "done" and len(tasks) == 2
    assert all(0 <= score <= 100 for score in tasks[1]["scores"]["class_il"][:2])
