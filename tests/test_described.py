"""ENGINE and the descriptions of names: files, losses, the reranking and the merged maps by hand."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from models.engine import info_nce
from models.utils.descriptions import descriptions
from models.utils.projections import paired_contrast
from tests import contract
from utils.errors import UserError

# the file


def test_a_name_has_its_own_texts_or_those_of_its_words(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"fish": ["a", "b"], "striped": ["c"], "cat fish": ["d"], "star": ["e"]}))
    found = descriptions(str(path), ["fish", "striped fish", "cat fish", "starfish striped"])
    assert found == [["a", "b"], ["c", "a", "b"], ["d"], ["c"]]


@pytest.mark.parametrize(
    "text, part",
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "does not map class names to lists"),
        ('{"fish": "fins"}', "does not map class names to lists"),
        ('{"fish": [" "]}', "does not map class names to lists"),
        ('{"fish": ["fins"]}', "has none of cat, dog, owl and 1 more: add a list of texts for each class name"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, text, part):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=part) as refusal:
        descriptions(str(path), ["fish", "cat", "dog", "owl", "cow"])
    assert "\n" not in str(refusal.value) and "--descriptions" in str(refusal.value)


def test_the_picture_world_is_described():
    from datasets.tiny_world import streams

    names = streams.seq_tiny_names()
    assert all(len(own) >= 2 for own in descriptions("tiny", names))


# engine


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_info_nce_by_loops():
    rows, partners = drawn(4, 5), drawn(4, 5, seed=1)
    cosines = torch.stack([torch.stack([(a @ b) / a.norm() / b.norm() for b in partners]) for a in rows])
    losses = [-(row.log_softmax(0)[i]) for i, row in enumerate(cosines)]
    assert float(info_nce(rows, partners)) == pytest.approx(float(sum(losses)) / 4, rel=1e-5)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("engine", stop_after=1)


@torch.no_grad()
def test_the_loss_by_hand(toy, monkeypatch):
    model, x, y = toy.model, drawn(4, 128), torch.tensor([3, 4, 3, 4])
    monkeypatch.setattr(model.args, "sample_noise", 0.0)
    monkeypatch.setattr(model, "lengths", torch.ones_like(model.lengths))  # always the first description
    monkeypatch.setattr(model, "noisy", drawn(6, 128, seed=3))
    rows = torch.tensor([5, 0, 1, 2])
    images, labels = torch.cat([x, model.means[:3]]), torch.tensor([3, 4, 3, 4, 0, 1, 2])
    a, b = normalize(model.seer(images), dim=1), normalize(model.reader(model.texts[:5]), dim=1)
    expected = paired_contrast(a, b[labels], labels, model.net.logit_scale)
    first = model.described[model.starts[:5]]
    expected = expected + 2 * info_nce(model.reader(model.texts[:5]), first)
    expected = expected + 0.5 * info_nce(model.seer(x), model.noisy[rows])
    assert float(model.loss_of(x, y, rows, 0)) == pytest.approx(float(expected), rel=1e-4)
    monkeypatch.setattr(model.args, "sample_noise", 5.0)
    assert float(model.loss_of(x, y, rows, 0)) != pytest.approx(float(expected), rel=1e-2)


@torch.no_grad()
def test_scores_by_hand(toy, monkeypatch):
    model, inputs = toy.model, contract.images_of(toy)[0][:6]
    z = model.net.encode_unprojected(inputs)
    weights, bias = (t.float()[:5] for t in model.gaussian.solve())
    gaussian = normalize(normalize(z, dim=1) @ weights.T + bias, dim=1)
    a, b = model.seer(model.net.encode_image(inputs)), model.reader(model.texts[:5])
    cosines = normalize(a, dim=1) @ normalize(b, dim=1).T
    found = model(inputs)
    for i, row in enumerate(cosines):
        keys = []
        for c in range(5):
            own = model.described[int(model.starts[c]) : int(model.starts[c] + model.lengths[c])]
            keys.append(normalize(normalize(model.reader(own), dim=1).mean(0), dim=0))
        best = row.argsort(descending=True)[:3].tolist()
        described = {c: float(normalize(a[i], dim=0) @ keys[c]) for c in best}
        again = torch.tensor([described.get(c, min(described.values())) for c in range(5)])
        wanted = 0.8 * gaussian[i] + 0.2 * (0.5 * row + 0.5 * again)
        torch.testing.assert_close(found[i], wanted, atol=1e-4, rtol=1e-3)


def test_old_maps_and_means_do_not_move(toy):
    with contract.toys():
        first = contract.run("engine", stop_after=0).model
    assert torch.equal(first.seer.newest.weight, toy.model.seer.weight)
    assert torch.equal(first.reader.newest.bias, toy.model.reader.bias)
    assert torch.equal(first.means[:3], toy.model.means[:3]) and not first.means[3:].any()
    features, labels = toy.model.labeled(toy.dataset)
    own = (features @ toy.model.projection)[labels == 4].mean(0)
    torch.testing.assert_close(toy.model.means[4], own, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_noise_is_that_of_pixels(toy, monkeypatch):
    model = toy.model
    monkeypatch.setattr(model, "split", toy.dataset.train_loader)
    torch.manual_seed(0)
    model.begin_pass(0)
    images = torch.cat([images for images, _ in toy.dataset.train_loader.with_batch_size(256).plain()])
    torch.manual_seed(0)
    noisy = (images + 0.25 * torch.randn(images.shape)).clamp(0, 1)
    assert images.max() <= 1 and len(images) == 13
    torch.testing.assert_close(model.noisy, model.net.encode_image(model.net.normalize_images(noisy)))
    model.noisy = None


@torch.no_grad()
def test_without_descriptions_they_have_no_part():
    with contract.toys():
        toy = contract.build("engine", n_epochs=1)
        toy.args.descriptions = None
        model = type(toy.model)(None, toy.model.loss, toy.args, None, toy.dataset)
    model._n_seen_classes, model._n_past_classes = 3, 0
    x, y = drawn(2, 128), torch.tensor([0, 2])
    a, b = normalize(model.seer(x), dim=1), normalize(model.reader(model.texts[:3]), dim=1)
    wanted = paired_contrast(a, b[y], y, model.net.logit_scale)
    assert float(model.loss_of(x, y, None, 0)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(cross_entropy(model(drawn(2, 128)), y)) > 0
