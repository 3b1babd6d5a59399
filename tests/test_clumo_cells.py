"""Keys of CluMo against the cells of a stream: the oracle that picks by cell, mutual information, features of keys."""

import math

import pytest
import torch

from tests import contract
from tests.test_clumo import batch_of, begun
from utils.errors import UserError
from utils.kmeans import mutual_information


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def with_cells(dataset) -> None:
    """Each sample's group is its row modulo 2, its wording its row modulo 3."""
    for train in (True, False):
        samples = dataset.samples(train)
        row = torch.arange(len(samples))
        samples.cells = torch.stack([row % 2, row % 3], dim=1)


def test_mutual_information_by_hand():
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    h_b = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    h_ab = -(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5))
    shared = math.log(2) + h_b - h_ab
    assert mutual_information(a, b) == pytest.approx(shared / ((math.log(2) + h_b) / 2))
    assert mutual_information(b, a) == pytest.approx(mutual_information(a, b))
    assert mutual_information(a, 5 - a) == pytest.approx(1)  # names do not matter
    assert mutual_information(torch.arange(6) % 2, torch.arange(6) % 3) == pytest.approx(0, abs=1e-12)  # independent
    assert mutual_information(a, torch.zeros(4, dtype=torch.long)) == 0


def test_the_oracle_picks_the_prompt_of_the_cell():
    toy = contract.build("clumo", "toy-pairs", keys="cell", n_visual_keys=2, n_text_keys=3, route="oracle")
    with_cells(toy.dataset)
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    references = toy.dataset.train_loader.dataset.data
    batch = toy.model.read(references)
    picked = toy.model.choose(batch, torch.zeros(len(references), dtype=torch.long))
    assert picked.tolist() == [(int(row) % 3) * 2 + int(row) % 2 for row in references[:, 1]]
    inputs, labels, _ = batch_of(toy)
    used = set(toy.model.choose(toy.model.read(inputs), torch.zeros_like(labels)).tolist())
    toy.model.meta_observe(inputs, labels, inputs, epoch=0)
    moved = toy.model.prompts[0].grad.abs().sum((1, 2)) > 0
    assert set(moved.nonzero()[:, 0].tolist()) == used


@pytest.mark.parametrize(
    "sizes, cells, match", [((2, 2), True, "raise --n_visual_keys"), ((2, 3), False, "clove-tiny-rules")]
)
def test_the_oracle_needs_cells_and_a_prompt_for_each(sizes, cells, match):
    toy = contract.build("clumo", "toy-pairs", keys="cell", n_visual_keys=sizes[0], n_text_keys=sizes[1])
    if cells:
        with_cells(toy.dataset)
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    with pytest.raises(UserError, match=match):
        toy.model.meta_observe(*batch_of(toy), epoch=0)


def test_a_run_measures_how_far_keys_follow_the_cells():
    toy = begun(n_visual_keys=2, n_text_keys=2)
    with_cells(toy.dataset)
    toy.model.meta_end_task(toy.dataset)
    assert "nmi_visual" not in toy.model.measured
    refs = toy.model.cached_inputs(toy.dataset.test_loaders[0])
    toy.model.measured = {}
    toy.model.measure_keys(refs, 0)
    batch = toy.model.read(refs)
    i, j = toy.model.nearest_keys(batch, torch.zeros(len(refs), dtype=torch.long))
    rows = refs[:, 1]
    assert toy.model.measured["nmi_visual"] == [pytest.approx(100 * mutual_information(i, rows % 2))]
    assert toy.model.measured["nmi_text"] == [pytest.approx(100 * mutual_information(j, rows % 3))]


@pytest.mark.parametrize("feature", ["class", "early"])
def test_features_of_keys(feature):
    """From the cache and from images at hand they are the same, and what their name says."""
    toy = begun(key_feature=feature)
    references, net = toy.dataset.train_loader.dataset.data[:3], toy.model.net
    cached = toy.model.read(references)
    pairs = toy.dataset.samples(True).data[references[:, 1]]
    images = net.normalize_images(pairs.image)
    direct = toy.model.read(type(pairs)(images, pairs.text))
    for name in ("visual", "textual"):
        torch.testing.assert_close(getattr(cached, name), getattr(direct, name), atol=2e-2, rtol=2e-2)
    visual = net.clip.visual
    x = visual.ln_pre(
        torch.cat([visual.class_embedding.expand(3, 1, -1), visual.conv1(images).flatten(2).mT], 1)
        + visual.positional_embedding
    )
    for block in visual.transformer.resblocks[: 1 if feature == "early" else None]:
        x = block(x.transpose(0, 1)).transpose(0, 1)
    wanted = x[:, 1:].mean(1) if feature == "early" else torch.nn.functional.normalize(x[:, 0], dim=1)
    torch.testing.assert_close(direct.visual, wanted, atol=1e-4, rtol=1e-4)
