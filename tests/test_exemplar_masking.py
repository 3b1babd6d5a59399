"""ExemplarMasking: records, budgets, and a run on images with texts."""

import pytest
import torch

from backbone.clip import load_clip
from backbone.multimodal import Attention
from tests import contract
from tests.multimodal_toys import CELLS, SIDE, batch, draw, memory_args, net, some
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.memory import token_augment
from utils.memory.exemplar_memory import ExemplarMemory, box, mask_rule, samples_or_number
from utils.memory.exemplars import herd
from utils.memory.records import (
    KINDS,
    RecordMemory,
    fill_grid,
    patchify,
    select,
    to_bytes,
    unpatchify,
)

# records


def test_a_masked_record_holds_what_was_kept_and_is_as_long_as_said(tmp_path):
    _, tokens = batch()
    patches, words = some(tokens)
    kept = select(tokens, patches, words)
    records = [to_bytes(kept.rows(i), 7 + 300 * i, CELLS, "masked") for i in range(3)]
    memory = RecordMemory(3 * SIDE**2)
    memory.add(records)
    for i, record in enumerate(records):
        n, m = int(patches[i].sum()), int(words[i].sum())
        positions = int(tokens.word_seen[i].sum())  # the end of text is kept, so all of them count
        assert len(record) == 9 + 5 + n * 192 + 2 * m + -(-positions // 8) + 1 == int(memory.sizes[i])
        (tmp_path / "record").write_bytes(memory.record(i))
        assert (tmp_path / "record").stat().st_size == len(record)
        assert sum(bin(byte).count("1") for byte in record[9:14]) == n
    back, order = memory.decode(torch.tensor([2, 0, 1])), [2, 0, 1]
    assert memory.labels.tolist() == [7, 307, 607] and memory.nbytes == sum(map(len, records)) + 8 * 4
    for row, i in enumerate(order):
        assert torch.equal(back.patches[row, back.seen[row]], tokens.patches[i, patches[i]])
        assert torch.equal(back.places[row, back.seen[row]], patches[i].nonzero().flatten())
        assert torch.equal(back.ids[row, back.word_seen[row]], tokens.ids[i, words[i]])
        assert torch.equal(back.word_places[row, back.word_seen[row]], words[i].nonzero().flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back(kind):
    _, tokens = batch()
    smooth = torch.arange(48)[:, None] * 2 + torch.arange(48)
    tokens = tokens._replace(patches=patchify(smooth.to(torch.uint8).expand(3, 3, -1, -1), SIDE))
    inside = torch.zeros(CELLS, dtype=torch.bool)
    inside[[7, 8, 13, 14]] = True
    memory = RecordMemory(192)
    memory.add([to_bytes(tokens.rows(i), i, CELLS, kind, 95, inside) for i in range(3)])
    back = memory.decode(torch.arange(3))
    assert back.seen.all() and torch.equal(back.places, tokens.places)
    assert torch.equal(back.ids[back.word_seen], tokens.ids[tokens.word_seen])
    error = (back.patches.float() - tokens.patches.float()).abs()
    assert error.amax() <= {"raw": 0, "masked": 0, "box": 2}.get(kind, 12)
    if kind == "box":
        assert (error[:, inside] == 0).all()
        assert len(memory.record(0)) == 9 + 5 + 192 * (4 + 32 // 4) + 2 * int(tokens.word_seen[0].sum())


def test_damaged_records_are_refused():
    _, tokens = batch(1)
    memory = RecordMemory(192)
    memory.add([to_bytes(tokens.rows(0), 0, CELLS, "jpeg")])
    memory.data[9] = 0  # quality
    with pytest.raises(UserError, match="damaged"):
        memory.decode(torch.tensor([0]))
    memory.data[0] = 99
    with pytest.raises(UserError, match="unknown kinds"):
        memory.decode(torch.tensor([0]))
    with pytest.raises(UserError, match="below 65536"):
        to_bytes(tokens._replace(ids=tokens.ids + 70000).rows(0), 0, CELLS, "raw")


def test_patches_and_filling():
    images, tokens = batch()
    assert torch.equal(unpatchify(tokens.patches, SIDE), images)
    patches, words = some(tokens)
    grid = fill_grid(select(tokens, patches, words), CELLS, 127).patches
    assert torch.equal(grid[patches], tokens.patches[patches]) and (grid[~patches] == 127).all()


@pytest.mark.parametrize("text", ["x", "-2x", "0", "five", ""])
def test_bad_budgets_and_rules_are_refused(text):
    import argparse

    with pytest.raises(argparse.ArgumentTypeError):
        samples_or_number(text)
    for rule in ("ratio", "ratio:1.5", "mean:2", "mass:x", "best"):
        with pytest.raises(argparse.ArgumentTypeError):
            mask_rule(rule)
    assert samples_or_number("5x") == "5x" and mask_rule("ratio:0.25") == "ratio:0.25"


# budget and choice


def fill(memory: ExemplarMemory, label: int, n: int = 12, n_seen: int = 1):
    _, tokens = batch(n, seed=label)
    patches, words = some(tokens, seed=label + 50)
    if memory.args.exemplar_codec == "raw":
        patches, words = tokens.seen, tokens.word_seen
    features = torch.nn.functional.normalize(torch.randn(n, 8, generator=draw(label)), dim=1)
    memory.add_class(tokens, label, features, patches, words, torch.rand(n, CELLS, generator=draw(9)), n_seen)
    return tokens, features


@pytest.mark.parametrize("unit", ["bytes_raw", "bytes_jpeg", "tokens"])
@pytest.mark.parametrize("codec", ["masked", "raw"])
def test_the_budget_of_a_class_is_kept_in_every_unit(unit, codec):
    memory = ExemplarMemory(memory_args(budget_unit=unit, exemplar_codec=codec), 192, CELLS)
    for label in range(3):
        tokens, features = fill(memory, label)
        own = memory.records.labels == label
        budget = float(memory.full_costs(tokens.rows(herd(features, 2))).sum())
        if codec == "raw":
            assert int(own.sum()) == 2 and float(memory.notes[own, 0].sum()) == budget, "exactly the samples named"
        assert 0 < float(memory.notes[own, 0].sum()) <= budget
        if unit != "tokens":
            assert int(memory.records.sizes[own].sum()) == float(memory.notes[own, 0].sum())
        if codec == "masked" and unit != "bytes_jpeg":
            assert int(own.sum()) >= 4, "at least twice as many as full ones"


@pytest.mark.parametrize("codec", ["masked", "raw", "box", "jpeg"])
def test_a_count_of_exemplars_is_the_same_whatever_they_hold(codec):
    memory = ExemplarMemory(memory_args(budget_unit="exemplars", exemplar_codec=codec), 192, CELLS)
    for label in range(2):
        fill(memory, label)
    assert memory.records.labels.tolist() == [0, 0, 1, 1]


def test_a_total_budget_trims_old_classes_from_the_tail():
    memory = ExemplarMemory(memory_args(buffer_bytes=60000), 192, CELLS)
    hashes = []
    for label in range(3):
        memory.make_room(label + 1)
        kept = [memory.records.record(i) for i in range(len(memory))]
        assert sum(map(len, kept)) <= 60000 * label / (label + 1)
        for old in range(label):
            own = [r for r in kept if r[1] == old]
            assert own == hashes[old][: len(own)], "records never change, the first stay"
        fill(memory, label, n_seen=label + 1)
        assert int(memory.records.sizes.sum()) <= 60000
        hashes.append([memory.records.record(i) for i in range(len(memory)) if memory.records.labels[i] == label])
    assert memory.nbytes == memory.records.nbytes + memory.notes.numel() * 4


def test_a_total_budget_that_leaves_a_class_nothing_is_refused():
    memory = ExemplarMemory(memory_args(buffer_bytes_per_class=None, buffer_bytes=8000), 192, CELLS)
    fill(memory, 0, n_seen=1)
    with pytest.raises(UserError, match="leaves some of 40 classes without an exemplar"):
        memory.make_room(40)


def test_records_are_in_herding_order_and_skip_fits_more():
    memory = ExemplarMemory(memory_args(), 192, CELLS)
    tokens, features = fill(memory, 0)
    first = herd(features, 1)[0]
    assert (features.mean(0) - features[first]).norm() == (features.mean(0) - features).norm(dim=1).min()
    patches, _ = some(tokens, seed=50)
    back = memory.records.decode(torch.tensor([0]))
    assert torch.equal(back.patches[0, back.seen[0]], tokens.patches[first, patches[first]])
    skip = ExemplarMemory(memory_args(budget_fill="skip"), 192, CELLS)
    fill(skip, 0)
    assert len(skip) >= len(memory)
    with pytest.raises(UserError, match="less than one exemplar"):
        fill(ExemplarMemory(memory_args(buffer_bytes_per_class="100"), 192, CELLS), 0)


def test_box_is_the_smallest_rectangle():
    attention = torch.zeros(1, CELLS)
    attention[0, [8, 21]], attention[0, 0] = 1.0, 0.5  # (1, 2), (3, 3); the corner is below the threshold
    assert box(attention, 0.6).nonzero()[:, 1].tolist() == [8, 9, 14, 15, 20, 21]


def test_distillation_is_nothing_where_both_agree():
    logits = torch.randn(4, 5, generator=draw(1))
    assert float(soft_divergence(logits, logits, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(soft_divergence(logits.flip(0), logits, 2.0)) > 0.01


# runs


def test_a_run_on_pairs_keeps_bytes_and_masks():
    with contract.toys():
        toy = contract.run("exemplar-masking", "toy-pairs", n_epochs=1, buffer_bytes_per_class="3x")
    model, offsets = toy.model, [toy.dataset.get_offsets(t) for t in range(3)]
    memory = model.memory
    full = 9 + 36 * 192 + 2 * 6
    for label in range(9):
        assert 0 < int(memory.records.sizes[memory.records.labels == label].sum()) <= 3 * full
    assert set(memory.statistics(offsets)) <= set(model.measured) and len(model.measured["nme"]) == 3
    assert model.stored_bytes()["memory"] == memory.nbytes <= 1.1 * 9 * 3 * full
    before = {n: p.clone() for n, p in model.net.clip.clip.named_parameters() if not p.requires_grad}
    fresh = load_clip("tiny").clip.state_dict()
    kept = {n.replace("parametrizations.", "").replace(".original", ""): p for n, p in before.items()}
    same = [torch.equal(p, fresh[n]) for n, p in kept.items() if n in fresh]
    assert len(same) > 50 and all(same), "the towers' own weights stay as they are"


@pytest.mark.parametrize(
    ("flag", "value", "base"),
    [
        ("text_rule", "class_only", {}),
        ("direction", "t2i", {}),
        ("sum_beta", 5.0, {"text_rule": "sum"}),
        ("box_threshold", 0.95, {"exemplar_codec": "box"}),
        ("jpeg_quality", 5, {"exemplar_codec": "jpeg"}),
    ],
)
def test_a_flag_of_masks_and_records_changes_what_is_kept(flag, value, base):
    _, tokens = batch(6)
    n, m = CELLS, tokens.ids.shape[1]
    attention = Attention(*(torch.rand(6, *shape, generator=draw(4)) for shape in ((n,), (m,), (n, m), (m, n))))
    kept = []
    for changes in (base, base | {flag: value}):
        memory = ExemplarMemory(memory_args(**changes), 192, CELLS)
        patches, words = memory.masks(attention, tokens)
        kept.append([memory.record(tokens.rows(i), 0, patches[i], words[i]) for i in range(6)])
    assert kept[0] != kept[1]
    if flag == "jpeg_quality":  # beyond the byte that names it
        assert all(len(low) < len(usual) for usual, low in zip(*kept, strict=True))


@pytest.mark.parametrize("flags", [{"exemplar_codec": "jpeg"}, {"budget_unit": "bytes_jpeg"}])
def test_jpeg_of_texts_alone_is_refused(flags):
    with contract.toys(), pytest.raises(UserError, match="--look_at text keeps no patches"):
        contract.run("exemplar-masking", "toy-pairs", n_epochs=1, look_at="text", **flags)


def test_what_the_background_leaves_empty_is_filled():
    """Every cell has a patch then: the exemplar's own, a new image's, or gray."""
    with contract.toys():
        toy = contract.run("exemplar-masking", "toy-pairs", n_epochs=1, exemplar_aug="background", aug_p=1.0)
    model, (x, _) = toy.model, contract.images_of(toy)
    fresh, rows = model.tokens(x[:4]), torch.arange(len(model.memory))
    holes, _ = model.replayed(rows, fresh)
    model.args.replay_fill = "mean"
    filled, _ = model.replayed(rows, fresh)
    own = model.memory.records.decode(rows)
    assert own.seen.sum() < holes.seen.sum() < filled.seen.sum() == filled.seen.numel() == len(rows) * CELLS
    for i in range(len(rows)):
        cells = holes.places[i, holes.seen[i]]
        assert torch.equal(filled.patches[i, cells], holes.patches[i, holes.seen[i]])
        assert (filled.patches[i].index_fill(0, cells, 127) == 127).all()


def test_bytes_and_tower_values_of_patches_are_inverse():
    images, tokens = batch()
    assert torch.equal(net().in_bytes(net().normalized(tokens.patches)), tokens.patches)
    assert torch.equal(net().in_bytes(tokens.patches), tokens.patches)


def test_pictures_or_texts_alone_and_augmentation_on_pairs():
    """--look_at omits one half; each --exemplar_aug and its probability change what is replayed."""
    with contract.toys():
        toy = contract.run("exemplar-masking", "toy-pairs", n_epochs=1)
    model, (x, _) = toy.model, contract.images_of(toy)
    fresh, rows = model.tokens(x[:4]), torch.arange(len(model.memory))
    replayed = {}
    for kind in token_augment.AUGMENTATIONS:
        for p in (0.0, 1.0):
            model.args.exemplar_aug, model.args.aug_p = kind, p
            torch.manual_seed(0)
            tokens = model.replayed(rows, fresh)[0]
            replayed[kind, p] = model.net.features(tokens).detach()
    for kind in token_augment.AUGMENTATIONS:
        same = torch.allclose(replayed[kind, 0.0], replayed[kind, 1.0], atol=1e-5)
        assert same == (kind == "none"), kind
        torch.testing.assert_close(replayed[kind, 0.0], replayed["none", 0.0], atol=1e-4, rtol=1e-4)
    model.args.look_at = "image"
    assert (model.tokens(x).word_seen.sum(1) == 2).all()
    model.args.look_at = "text"
    assert model.tokens(x).patches.shape[1] == 0 and model(x).isfinite().all()
