"""Cross-domain baselines against slow forms: distillation, weight means and merges, ridge, reference data."""

import copy

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize, one_hot

from models.utils import reference
from models.utils.clip_distillation import random_sentences, two_way_divergence
from tests import contract
from tests.test_contract_models import skipped
from utils.engine import checkpoint
from utils.errors import UserError
from utils.weights import weights_of


@pytest.fixture(autouse=True)
def toys():
    with contract.toys():
        yield


def begun(name: str, **flags):
    """A model at the start of its first task, and a batch as its `penalty` takes it."""
    toy = contract.build(name, **flags)
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    inputs, labels, _ = next(iter(toy.dataset.train_loader))
    return toy.model, batch_of(toy.model, inputs), labels


def batch_of(model, inputs):
    return model.clip_input(inputs)


def penalty(model, pixels, labels):
    """The penalty with features made anew, with gradient."""
    images, names = model.image_rows(model.net, pixels), model.name_rows(model.net, *model.label_range())
    return model.penalty(pixels, images, names, labels)


def disturb(model, seed: int = 0):
    """All trained weights a little off."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.get_parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)


def towers_with_gradient(model, loss) -> set[str]:
    model.net.zero_grad()
    loss.backward()
    return {
        "image" if name.startswith("clip.visual") else "text"
        for name, p in model.net.named_parameters()
        if p.grad is not None and bool(p.grad.abs().max() > 0)
    }


# distillation


def test_two_way_divergence_by_loops():
    draw = torch.Generator().manual_seed(1)
    images, texts, taught, known = (normalize(torch.randn(n, 5, generator=draw), dim=1) for n in (4, 3, 4, 3))
    s, T, total = 7.0, 2.0, 0.0
    given, wanted = s * images @ texts.T, s * taught @ known.T
    for a, b in ((given, wanted), (given.T, wanted.T)):
        for row, target in zip(a, b, strict=True):
            p, q = (target / T).softmax(0), (row / T).softmax(0)
            total += float((p * (p / q).log()).sum()) * T**2 / len(a)
    assert float(two_way_divergence(images, texts, taught, known, s, T)) == pytest.approx(total, rel=1e-5)
    assert float(two_way_divergence(taught, known, taught, known, s, T)) == 0
    assert float(two_way_divergence(images[:1], texts, taught[:1], known, s, T)) > 0, "a batch of one"


@pytest.mark.parametrize("name", ["lwf-clip", "lwf-vr", "zscl"])
@pytest.mark.parametrize("teacher", ["previous", "pretrained"])
def test_a_student_that_is_its_teacher_is_not_held(name, teacher):
    model, pixels, labels = begun(name, teacher=teacher)
    assert float(penalty(model, pixels, labels).detach()) == pytest.approx(0, abs=1e-5)
    disturb(model)
    assert float(penalty(model, pixels, labels).detach()) > 1e-3


@pytest.mark.parametrize(
    "name, flags, towers",
    [
        ("zscl", {"l2": 0}, {"image"}),
        ("zscl", {"l2": 0, "reference": "self"}, {"image"}),
        ("zscl", {}, {"image", "text"}),
        ("lwf-clip", {}, {"image"}),
        ("lwf-clip", {"kd_text": "student"}, {"image", "text"}),
        ("lwf-vr", {}, {"image"}),
    ],
)
def test_which_tower_the_penalty_moves(name, flags, towers):
    """The text tower has a gradient only with --l2 or student texts; else both sides use the teacher's texts."""
    model, pixels, labels = begun(name, **flags)
    disturb(model)
    assert towers_with_gradient(model, penalty(model, pixels, labels)) == towers
    assert model.net.clip.logit_scale.grad is None


@pytest.mark.parametrize("teacher", ["previous", "pretrained"])
def test_which_model_teaches(teacher):
    model, *_ = begun("lwf-clip", teacher=teacher)
    first = copy.deepcopy(weights_of(model.net))
    disturb(model)
    now = copy.deepcopy(weights_of(model.net))
    model.meta_end_task(model.dataset)
    model.dataset.get_data_loaders()
    with torch.no_grad():  # the merge after the task is not of interest here
        for name, p in model.net.named_parameters():
            if name in now:
                p.copy_(now[name])
    model.meta_begin_task(model.dataset)
    wanted = now if teacher == "previous" else first
    found = weights_of(model.teacher, trained_only=False)
    assert all(torch.equal(found[name], w) for name, w in wanted.items())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_squared_way_by_hand():
    model, pixels, labels = begun("zscl", kd_weight=0, l2=0.5)
    before = copy.deepcopy(weights_of(model.net))
    disturb(model)
    way = sum(float((p - before[n]).square().sum()) for n, p in weights_of(model.net).items())
    assert float(penalty(model, pixels, labels).detach()) == pytest.approx(0.5 * way, rel=1e-4)


# weights


def test_the_ensemble_is_the_mean_of_its_snapshots():
    """A run of 12 steps in the first task: the start, the first step, then every third."""
    toy = contract.build("zscl", avg_freq=3)
    model, kept, means = toy.model, [], []
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    kept.append(copy.deepcopy(weights_of(model.net)))
    loader = toy.dataset.train_loader
    for step, (inputs, labels, plain) in enumerate((b for e in range(2) for b in loader.epoch(e)), 1):
        model.meta_observe(inputs, labels, plain)
        if step == 1 or step % 3 == 0:
            kept.append(copy.deepcopy(weights_of(model.net)))
        means.append(model.mean_count)
    assert step == 12 and len(kept) == means[-1] == 6
    model.meta_end_task(toy.dataset)
    for name, found in weights_of(model.net).items():
        torch.testing.assert_close(found, torch.stack([k[name] for k in kept]).mean(0), atol=1e-6, rtol=1e-5)


def test_a_thousand_steps_make_twelve_snapshots():
    model = contract.build("zscl").model
    model.args.avg_freq = 100
    for step in range(1000):
        model._task_iteration = step
        model.start_mean()
        model.add_snapshot()
    assert model.mean_count == 12


def one_task(name: str, **flags) -> dict:
    toy = contract.run(name, stop_after=0, **flags)
    return weights_of(toy.model.net)


def test_wise_ft_merges_by_hand():
    origin = weights_of(contract.build("wise-ft").model.net)
    tuned, merged = one_task("finetune-clip", avg_freq=0), one_task("wise-ft")
    for name, w in merged.items():
        torch.testing.assert_close(w, 0.2 * origin[name] + 0.8 * tuned[name], atol=1e-6, rtol=1e-5)
    kept, fixed = one_task("wise-ft", inter_alpha=1), one_task("wise-ft", inter_alpha=0)
    assert all(torch.equal(kept[n], w) for n, w in tuned.items())
    assert all(torch.equal(fixed[n], w) for n, w in origin.items())


def test_wise_ft_to_the_first_clip():
    """alpha .5 in two tasks: with the first CLIP as anchor each task's end is half way to it."""
    toy = contract.build("wise-ft", inter_anchor="pretrained", inter_alpha=0.5)
    model, origin = toy.model, copy.deepcopy(weights_of(toy.model.net))
    for seed in range(2):
        toy.dataset.get_data_loaders()
        model.meta_begin_task(toy.dataset)
        disturb(model, seed)
        before = copy.deepcopy(weights_of(model.net))
        model.meta_end_task(toy.dataset)
        for name, w in weights_of(model.net).items():
            torch.testing.assert_close(w, (before[name] + origin[name]) / 2)


def test_lwf_with_a_merge_is_lwf_then_the_merge():
    origin = weights_of(contract.build("lwf-clip").model.net)
    plain, merged = one_task("lwf-clip", inter_alpha=1), one_task("lwf-clip", inter_alpha=0.25)
    for name, w in merged.items():
        torch.testing.assert_close(w, 0.75 * origin[name] + 0.25 * plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["icarl-clip", "lwf-clip", "lwf-vr", "wise-ft", "zscl"])
def test_a_task_goes_on_bit_for_bit(name, tmp_path):
    """Saved in the middle of the second task, restored into a fresh model, and led to the end of it."""

    def upto(toy, tasks):
        for _ in range(tasks):
            toy.dataset.get_data_loaders()
            toy.model.meta_begin_task(toy.dataset)
            for batch in toy.dataset.train_loader.epoch(0):
                toy.model.meta_observe(*batch)
            toy.model.meta_end_task(toy.dataset)
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)

    def rest(toy, start):
        for batch in toy.dataset.train_loader.epoch(0, start):
            toy.model.meta_observe(*batch)
        toy.model.meta_end_task(toy.dataset)
        return weights_of(toy.model.net)

    toy, fresh = contract.build(name), contract.build(name)
    upto(toy, 1)
    for batch, _ in zip(toy.dataset.train_loader.epoch(0), range(2), strict=False):
        toy.model.meta_observe(*batch)
    state, lost = checkpoint.capture(toy.model, skipped(toy.model))
    assert not lost
    checkpoint.save(tmp_path / "mid.safetensors", state, model=name)
    expected = {n: w.clone() for n, w in rest(toy, 2).items()}
    for _ in range(2):
        fresh.dataset.get_data_loaders()
    fresh.model.meta_begin_task(fresh.dataset)
    checkpoint.restore(fresh.model, checkpoint.load(tmp_path / "mid.safetensors", model=name), skipped(fresh.model))
    found = rest(fresh, 2)
    assert all(torch.equal(found[n], w) for n, w in expected.items())


# exemplars


def test_icarl_keeps_herded_images_and_their_answers():
    """Two tasks by hand: which images are kept, and the penalty on them."""
    toy = contract.build("icarl-clip", buffer_size=10, minibatch_size=10)
    model, dataset = toy.model, toy.dataset
    dataset.get_data_loaders()
    model.meta_begin_task(dataset)
    inputs, labels, _ = next(iter(dataset.train_loader))
    assert penalty(model, model.clip_input(inputs), labels) == 0.0
    split = dataset.train_loader.dataset
    disturb(model)
    with torch.no_grad():
        features = normalize(model.net.encode_image(model.net.normalize_images(split.data)), dim=1)
    model.meta_end_task(dataset)
    stored = model.buffer.serialize()
    assert stored["labels"].bincount().tolist() == [4, 3, 3] and stored["examples"].dtype == torch.uint8
    for c in range(3):
        rows, chosen = torch.nonzero(split.targets == c).flatten(), []
        for k in range(int((stored["labels"] == c).sum())):
            gaps = {
                r: float((features[rows].mean(0) - features[[*chosen, r]].sum(0) / (k + 1)).norm())
                for r in rows.tolist()
                if r not in chosen
            }
            chosen.append(min(gaps, key=gaps.get))
        assert torch.equal(stored["examples"][stored["labels"] == c], split.data[chosen])
    dataset.get_data_loaders()
    model.meta_begin_task(dataset)
    pixels, known = model.net.normalize_images(stored["examples"].float() / 255), stored["labels"]
    images, taught = (normalize(net.encode_image(pixels), dim=1) for net in (model.net, model.pretrained))
    texts = model.name_rows(model.pretrained, 0, 3)
    given, wanted = (model.scale * rows @ texts.T / 2 for rows in (images, taught))
    divergence = 4 * (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1).mean()
    own = torch.nn.functional.cross_entropy(model.scale * images @ model.name_rows(model.net, 0, 3).T, known)
    inputs, labels, _ = next(iter(dataset.train_loader))
    found = penalty(model, model.clip_input(inputs), labels)
    assert float(found.detach()) == pytest.approx(float((divergence + own).detach()), rel=1e-3)


# RAIL


def hidden_of_all(toy):
    """Random features (N, M) and one-hot labels of all training images, task by task."""
    for loader in toy.dataset.all_loaders(toy.model.change_transform)[0]:
        features, labels = toy.model.image_features(loader.dataset)
        yield toy.model.hidden(features).double(), one_hot(labels, 9).double()


@pytest.mark.parametrize("width", [0, 24])
def test_rail_is_the_joint_ridge_and_the_recursive_one(width):
    toy = contract.run("rail", rp_size=width)
    parts = list(hidden_of_all(toy))
    H, Y = (torch.cat(column) for column in zip(*parts, strict=True))
    joint = torch.linalg.solve(H.T @ H + 0.1 * torch.eye(H.shape[1], dtype=torch.float64), H.T @ Y)
    torch.testing.assert_close(toy.model.weights.double(), joint, atol=1e-4, rtol=1e-4)
    R, W = torch.eye(H.shape[1], dtype=torch.float64) / 0.1, torch.zeros_like(joint)
    for X, y in ((h[k : k + 4], t[k : k + 4]) for h, t in parts for k in range(0, len(h), 4)):
        R = R - R @ X.T @ torch.linalg.inv(torch.eye(len(X), dtype=torch.float64) + X @ R @ X.T) @ X @ R
        W = W + R @ X.T @ (y - X @ W)
    torch.testing.assert_close(W, joint, atol=1e-8, rtol=1e-8)


def test_rail_fuses_where_the_best_name_has_been_trained():
    toy = contract.run("rail", stop_after=1)
    model, (x, _) = toy.model, contract.images_of(toy)
    seen = model.n_seen_classes
    assert seen == 5
    features = normalize(model.encode(x), dim=1)
    found, known = model.future_forward(x), 0
    for f, row in zip(features, found, strict=True):
        zero_shot = (model.net.logit_scale * model.keys @ f).softmax(0)
        if int(zero_shot.argmax()) < seen:
            known += 1
            zero_shot = 0.2 * zero_shot + 0.8 * ((f @ model.random).relu() @ model.weights)
        torch.testing.assert_close(row, zero_shot, atol=1e-5, rtol=1e-4)
    assert 0 < known < len(x)
    assert not model.weights[:, seen:].any(), "nothing is known of names to come"


# reference data


@pytest.fixture(scope="module")
def net():
    with contract.toys():
        return contract.build("clip").model.net


def test_random_sentences(net):
    rows = random_sentences(net, 20, 6, 0, "x")
    sample = net.tokenize("a cup")[0]
    assert rows.shape == (20, 8) and (rows[:, 0] == sample[0]).all() and (rows[:, -1] == sample.max()).all()
    assert (rows[:, 1:-1] > 0).all() and (rows[:, 1:-1] < sample[0]).all() and len(rows.unique(dim=0)) == 20
    assert torch.equal(rows, random_sentences(net, 20, 6, 0, "x")) and not torch.equal(
        rows, random_sentences(net, 20, 6, 1, "x")
    )
    many = random_sentences(net, 4000, 6, 0)[:, 1:-1]
    assert 0 < many.min() and many.max() < min(sample[0], sample.max()), "no start and no end within"
    assert random_sentences(net, 1, 500, 0).shape[1] == net.context_length


def test_noise_has_the_spectrum_of_photographs():
    images = reference.noise_pictures(16, 32, torch.Generator().manual_seed(0)).float()
    power = torch.fft.rfft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))  # (32, 17)
    along = power[0, 1:]  # frequencies 1 .. 16
    assert 20 < along[1] / along[9] < 100, "amplitude falls as 1 / f: power at 2 and at 10 differs 25 times"
    assert images.min() >= 0 and images.max() <= 255 and 30 < images.std() < 70


def test_sources_of_reference_data(net, tmp_path):
    pictures, texts = reference.reference_data("tiny", net, 12, 0)
    again, _ = reference.reference_data("tiny", net, 12, 5)
    assert pictures.shape == (12, 3, net.resolution, net.resolution) and pictures.dtype == torch.uint8
    assert torch.equal(pictures, again) and 6 <= len(texts) <= 12
    noise, sentences = reference.reference_data("synthetic", net, 5, 0)
    assert len(noise) == len(sentences) == 5
    for k in range(4):
        path = tmp_path / "some" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L" if k else "RGB", (60 + k, 50), 60 * k).save(path)
    (tmp_path / "captions.txt").write_text("a cup\na star\n\na cup\n")
    found, texts = reference.reference_data(str(tmp_path), net, 3, 0)
    assert len(found) == 3 and torch.equal(texts.sort(0).values, net.tokenize(["a cup", "a star"]).sort(0).values)
    assert len(found.float().mean((1, 2, 3)).unique()) == 3
    (tmp_path / "some" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="0.png cannot be read"):
        reference.reference_data(str(tmp_path), net, 4, 0)
    (tmp_path / "captions.txt").write_text("\n")
    with pytest.raises(UserError, match="holds 4 images and 0 texts"):
        reference.reference_data(str(tmp_path), net, 4, 0)
    with pytest.raises(UserError, match="nowhere.captions.txt does not exist; .*choose tiny or synthetic"):
        contract.build("zscl", reference=str(tmp_path / "nowhere"))


def test_reference_batches_are_functions_of_the_step():
    model, *_ = begun("zscl")
    first = model.reference_rows()
    assert len(first) == 4 and torch.equal(first, model.reference_rows())
    model._task_iteration = 1
    assert not torch.equal(first, model.reference_rows())


@pytest.mark.parametrize("name, flags", [("lwf-vr", {}), ("lwf-clip", {}), ("zscl", {"l2": 0})])
def test_distillation_has_its_weight(name, flags):
    model, pixels, labels = begun(name, **flags)
    disturb(model)
    found = {}
    for model.args.kd_weight in (1.0, 3.0):
        found[model.args.kd_weight] = float(penalty(model, pixels, labels).detach())
    assert found[3.0] == pytest.approx(3 * found[1.0], rel=1e-5) and found[1.0] > 1e-3


@pytest.mark.parametrize("teacher", ["previous", "pretrained"])
def test_reference_answers_are_those_of_the_teacher(teacher):
    model, *_ = begun("zscl", teacher=teacher)
    first = model.answers.clone()
    disturb(model)
    model.meta_end_task(model.dataset)
    model.dataset.get_data_loaders()
    model.meta_begin_task(model.dataset)
    now = model.image_rows(model.net, model.net.normalize_images(model.pictures)).detach()
    torch.testing.assert_close(model.answers, first if teacher == "pretrained" else now)
    assert (now - first).abs().max() > 1e-3


def test_sentences_are_drawn_by_the_seed():
    first, again, other = (begun("lwf-vr", seed=seed)[0].texts for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)
