"""Methods on cached CLIP features against independent code: numpy, scipy, one image at a time, another task order."""

from argparse import ArgumentTypeError, Namespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import normalize

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from models.clip import Clip
from models.linear_probe import LinearProbe, fit_logistic
from models.ncm import Ncm
from models.ridge import Ridge
from models.slda import Slda
from tests.clip_weights import write_tiny
from utils.engine.evaluate import evaluate_tasks
from utils.errors import UserError
from utils.flags import sentence
from utils.pair import Pair

NAMES = ["fish", "photo", "striped fish", "a", "of a fish", "photo fish", "striped"]
VALUES = {
    "optimizer": "sgd",
    "n_epochs": 0,
    "batch_size": 4,
    "seed": 0,
    "device": "cpu",
    "non_verbose": True,
    "features": "ram",
    "clip_dtype": "fp32",
    "clip_download": 0,
    "prompt_template": None,
    "use_templates": False,
    "text_weight": 0.0,
    "shrinkage": 0.05,
    "prior": "empirical",
    "cov": "shared",
    "normalize": True,
    "ridge": 0.1,
    "C": 10.0,
    "probe_iters": 500,
    "probe_input": None,
}
MODELS = [Clip, Ncm, Slda, Ridge, LinearProbe]


class Pictures(ContinualDataset):
    """Seven classes in tasks of 2, 3 and 2; class c has 5 + c training images and four test images."""

    NAME = "pictures"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = [2, 3, 2]
    CLASS_NAMES = NAMES
    TEMPLATES = ["a photo of a {}.", "a {}"]

    def load(self, train):
        draw = torch.Generator().manual_seed(int(train))
        labels = torch.cat([torch.full((5 + c if train else 4,), c) for c in range(7)])
        labels = labels[torch.randperm(len(labels), generator=draw)]
        means = (
            torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(9))
            .repeat_interleave(8, 2)
            .repeat_interleave(8, 3)
        )
        noise = torch.rand(len(labels), 3, 32, 32, generator=draw)
        images = ((0.6 * means[labels] + 0.4 * noise) * 255).to(torch.uint8)
        if not self.HAS_TEXT:
            return ArraySamples(images, labels)
        text = torch.randint(1, 500, (len(labels), 6), generator=draw)
        text[:, -1] = 515  # the largest id ends a text
        return ArraySamples(Pair(images, text), labels)


class Captioned(Pictures):
    NAME = "captioned"
    HAS_TEXT = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    write_tiny(path)
    return path


@pytest.fixture
def build(folder, tmp_path):
    def make(cls, stream=Pictures, **changes):
        args = Namespace(**VALUES | {"clip_backbone": str(folder), "base_path": str(tmp_path)} | changes)
        dataset = stream(args)
        return cls(None, dataset.get_loss(), args, None, dataset), dataset

    return make


def train(model, dataset, tasks=None):
    for _ in range(dataset.N_TASKS if tasks is None else tasks):
        dataset.get_data_loaders()
        model.meta_begin_task(dataset)
        model.meta_end_task(dataset)
    return model.eval()


def features_of(model, dataset, train_set):
    """Image features one by one, and labels in the stream's order, as numpy float64."""
    samples = dataset.samples(train_set)
    order = getattr(dataset.args, "class_order", None)
    labels = samples.targets.numpy() if order is None else np.asarray(order)[samples.targets]
    pictures = samples.data.image if isinstance(samples.data, Pair) else samples.data
    with torch.no_grad():
        rows = [model.net.encode_image(model.net.normalize_images(picture[None])) for picture in pictures]
    return torch.cat(rows).double().numpy(), labels


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@torch.no_grad()
def scores(model, dataset):
    """Logits of all test images, in the order of the samples, as numpy."""
    pictures = dataset.samples(False).data
    if isinstance(pictures, Pair):
        return model(Pair(model.net.normalize_images(pictures.image), pictures.text)).double().numpy()
    return model(model.net.normalize_images(pictures)).double().numpy()


def test_clip_is_the_cosine_with_the_name(build):
    model, dataset = build(Clip)
    train(model, dataset)
    with torch.no_grad():
        texts = [model.net.encode_text(model.net.tokenize(f"a photo of a {n}."))[0].double().numpy() for n in NAMES]
    features, _ = features_of(model, dataset, False)
    expected = float(model.net.logit_scale) * unit(features) @ unit(np.stack(texts)).T
    assert np.allclose(scores(model, dataset), expected, atol=1e-4)


def test_clip_averages_all_templates(build):
    model, dataset = build(Clip, use_templates=True)
    with torch.no_grad():
        each = [
            [
                unit(model.net.encode_text(model.net.tokenize(t.format(n))).double().numpy())[0]
                for t in Pictures.TEMPLATES
            ]
            for n in NAMES
        ]
    assert np.allclose(model.keys.numpy(), unit(np.array(each).mean(1)), atol=1e-5)


def test_each_class_has_its_own_templates(build, monkeypatch):
    """Ragged lists of sentences: as many calls with one list each give the same."""
    own = [["a {}"], ["photo {}", "a {}"], ["{}"], ["a {}"], ["of {}"], ["{} a"], ["fish {}", "{}", "of {}"]]
    monkeypatch.setattr(Pictures, "class_templates", lambda self: own)
    model, _ = build(Clip, use_templates=True)
    expected = torch.cat([model.text_features([n], templates) for n, templates in zip(NAMES, own, strict=True)])
    assert torch.allclose(model.keys, expected, atol=1e-6)
    first = build(Clip)[0].keys
    assert torch.allclose(first[6:], model.text_features(["striped"], ["fish {}"]), atol=1e-6)
    forced = build(Clip, prompt_template="a photo of {}")[0].keys
    assert torch.allclose(forced, model.text_features(NAMES, ["a photo of {}"]), atol=1e-6)


@pytest.mark.parametrize("text_weight", [0.0, 0.3])
def test_ncm_against_means(build, text_weight):
    model, dataset = build(Ncm, text_weight=text_weight)
    train(model, dataset)
    features, labels = features_of(model, dataset, True)
    means = unit(np.stack([unit(features)[labels == c].mean(0) for c in range(7)]))
    keys = unit((1 - text_weight) * means + text_weight * model.text.double().numpy())
    expected = float(model.net.logit_scale) * unit(features_of(model, dataset, False)[0]) @ keys.T
    assert np.allclose(scores(model, dataset), expected, atol=1e-3)


def test_slda_against_the_discriminant(build):
    model, dataset = build(Slda)
    train(model, dataset)
    features, labels = features_of(model, dataset, True)
    f, test = unit(features), unit(features_of(model, dataset, False)[0])
    means = np.stack([f[labels == c].mean(0) for c in range(7)])
    centred = f - means[labels]
    sigma = centred.T @ centred / len(f)
    s = 0.95 * sigma + 0.05 * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    prior = np.log(np.bincount(labels) / len(labels))
    expected = np.stack(
        [[prior[c] - 0.5 * (x - means[c]) @ np.linalg.solve(s, x - means[c]) for c in range(7)] for x in test]
    )
    found = scores(model, dataset)  # the two differ by what all classes share
    assert np.allclose(found - found[:, :1], expected - expected[:, :1], atol=1e-2, rtol=1e-3)


def test_ridge_against_one_solve(build):
    model, dataset = build(Ridge)
    train(model, dataset)
    features, labels = features_of(model, dataset, True)
    H = torch.from_numpy(unit(features))
    W = torch.linalg.solve(H.T @ H + 0.1 * torch.eye(H.shape[1]).double(), H.T @ torch.eye(7).double()[labels])
    assert np.allclose(scores(model, dataset), unit(features_of(model, dataset, False)[0]) @ W.numpy(), atol=1e-4)


def test_logistic_against_scipy():
    draw = np.random.RandomState(0)
    x, y, C = draw.randn(60, 5), draw.randint(0, 3, 60), 2.0

    def loss(v):
        W, b = v[:15].reshape(3, 5), v[15:]
        z = x @ W.T + b
        return C * (np.log(np.exp(z).sum(1)) - z[np.arange(60), y]).sum() + 0.5 * (W**2).sum()

    best = minimize(loss, np.zeros(18), method="BFGS", options={"gtol": 1e-7})
    start = torch.zeros(3, 5), torch.zeros(3)
    weight, bias = fit_logistic(torch.from_numpy(x).float(), torch.from_numpy(y), *start, C, 500)
    assert np.allclose(weight.numpy(), best.x[:15].reshape(3, 5), atol=1e-3)
    assert np.allclose((bias - bias.mean()).numpy(), best.x[15:] - best.x[15:].mean(), atol=1e-3)
    assert loss(np.concatenate([weight.numpy().ravel(), bias.numpy()])) <= best.fun + 1e-5


@pytest.mark.parametrize("cls", [Ncm, Slda, Ridge, Clip])
def test_order_of_tasks_does_not_matter(build, cls):
    """The closed forms see all data once: any task order gives the same scores of the same classes."""
    one, first = build(cls)
    two, second = build(cls, custom_task_order=[2, 0, 1])
    train(one, first)
    train(two, second)
    place = second.args.class_order  # raw class -> column
    assert list(place) == [2, 3, 4, 5, 6, 0, 1]
    assert np.allclose(scores(two, second)[:, place], scores(one, first), atol=1e-4)


@pytest.mark.parametrize("cls", MODELS)
def test_permuted_classes_permute_the_columns(build, cls):
    """Within one task the names of columns carry no information."""
    order = [3, 0, 6, 1, 5, 2, 4]
    one, first = build(cls, joint=1)
    two, second = build(cls, joint=1, custom_class_order=order)
    train(one, first)
    train(two, second)
    assert np.allclose(scores(two, second), scores(one, first)[:, order], atol=2e-3)


@pytest.mark.parametrize("cls", [Clip, Ncm])
def test_new_classes_leave_old_columns(build, cls):
    model, dataset = build(cls)
    train(model, dataset, 1)
    before = scores(model, dataset)
    keys = model.keys[:2].clone() if cls is Clip else model.keys()[:2].clone()
    train(model, dataset, 2)
    after = scores(model, dataset)
    assert before.shape[1] == 2 and after.shape[1] == 7
    assert torch.equal(keys, model.keys[:2] if cls is Clip else model.keys()[:2])
    assert np.allclose(after[:, :2], before, atol=1e-5)


@pytest.mark.parametrize("stream", [Pictures, Captioned])
@pytest.mark.parametrize("cls", MODELS)
def test_cached_features_are_the_live_ones(build, cls, stream):
    """The path of an evaluation on cached rows, and images through the tower, give the same logits."""
    model, dataset = build(cls, stream)
    train(model, dataset)
    for loader in dataset.test_loaders:
        live = torch.cat([model(batch[0]) for batch in loader])
        cached = model(model.cached_inputs(loader))
        assert torch.allclose(live, cached, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("cls", [Clip, Slda])
def test_feature_modes_give_equal_scores(build, cls):
    found = {}
    for mode in ("disk", "ram", "off"):
        model, dataset = build(cls, features=mode)
        train(model, dataset)
        results = evaluate_tasks(model, dataset, dict(enumerate(dataset.test_loaders)))
        found[mode] = [(s.class_il, s.task_il, s.loss) for s in results.values()]
    assert found["disk"] == found["ram"] == found["off"]


def test_each_image_is_encoded_once_for_all_runs(build):
    """Distinct images are what a cold store counts, and a warm one counts none; without a store every use counts."""
    n_train, n_test = 5 * 7 + 21, 28
    for features, expected in (("disk", n_train + n_test), ("disk", 0), ("ram", n_train + n_test)):
        model, dataset = build(Ncm, features=features)
        train(model, dataset)
        for _ in range(2):
            evaluate_tasks(model, dataset, dict(enumerate(dataset.test_loaders)))
        assert model.image_forwards == expected
    model, dataset = build(Ncm, features="off")
    train(model, dataset)
    for _ in range(2):
        evaluate_tasks(model, dataset, dict(enumerate(dataset.test_loaders)))
    assert model.image_forwards == n_train + 2 * n_test


def test_future_forward_scores_every_name(build):
    model, dataset = build(Clip)
    train(model, dataset, 1)
    x = model.net.normalize_images(dataset.samples(False).data[:3])
    assert model(x).shape == (3, 2) and model.future_forward(x).shape == (3, 7)
    assert torch.equal(model.future_forward(x)[:, :2].argmax(1), model(x).argmax(1))
    model, dataset = build(Ncm)
    train(model, dataset, 1)
    both = model.future_forward(x)
    assert torch.allclose(both[:, :2], model(x), atol=1e-4)  # seen: means of images
    assert torch.allclose(both[:, 2:], model.logits(model.encode(x), model.text[2:]), atol=1e-4)  # unseen: the name


def test_one_image_is_scored_as_in_a_batch(build):
    for cls in MODELS:
        model, dataset = build(cls)
        train(model, dataset)
        x = model.net.normalize_images(dataset.samples(False).data)
        alone = torch.cat([model(x[i : i + 1]) for i in range(5)])
        assert torch.allclose(alone, model(x)[:5], atol=1e-3, rtol=1e-4)


def test_probe_sees_picture_text_or_both(build):
    """Each form against logistic regression on features written down here."""
    for looks_at in (None, "image", "text"):
        model, dataset = build(LinearProbe, Captioned, joint=1, probe_input=looks_at, probe_iters=200)
        train(model, dataset)
        samples = dataset.samples(True)
        image = torch.from_numpy(unit(features_of(model, dataset, True)[0]))
        text = normalize(
            torch.cat([model.net.encode_text(t[None]) for t in samples.data.text]).double(), dim=1
        ).detach()
        rows = {None: torch.cat([image, text, image * text * 48**0.5], 1), "image": image, "text": text}[looks_at]
        start = torch.zeros(7, rows.shape[1]), torch.zeros(7)
        weight, bias = fit_logistic(normalize(rows, dim=1).float(), samples.targets, *start, 10.0, 200)
        found = model.image_features(dataset.train_loader.dataset)[0]
        assert torch.allclose(normalize(found, dim=1).double()[:, : rows.shape[1]], normalize(rows, dim=1), atol=1e-5)
        assert torch.allclose(model.weight, weight, atol=2e-2)


def test_probe_input_needs_texts(build):
    with pytest.raises(UserError, match="has only images"):
        build(LinearProbe, probe_input="text")


@pytest.mark.parametrize("text", ["a photo", "{} or {}", "a {kind}", "a {", "{!x}"])
def test_template_without_a_place_for_the_name(text):
    with pytest.raises(ArgumentTypeError, match="exactly once"):
        sentence(text)


def test_template_with_a_place_for_the_name():
    assert sentence("a photo of a {}.").format("cat") == "a photo of a cat."
