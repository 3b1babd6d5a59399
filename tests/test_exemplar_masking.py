"""ExemplarMasking: records, budgets, towers on kept patches, adapters, augmentation, and a run on pictures with texts."""

import functools
from argparse import Namespace

import pytest
import torch

from backbone.adapters import add_ssf, count, fold, layers_of
from backbone.clip import load_clip
from backbone.fusion import make_fusion
from backbone.multimodal import Attention, MultimodalNet
from tests import contract
from utils import token_augment
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.exemplar_memory import ExemplarMemory, box, mask_rule, samples_or_number
from utils.exemplars import herd
from utils.masked_records import (
    KINDS,
    RecordMemory,
    fill_grid,
    full_tokens,
    patchify,
    select,
    special,
    to_bytes,
    unpatchify,
)

CELLS, SIDE = 36, 8
TEXTS = ["a photo of a red cup in the sea.", "a fish.", "a picture of a striped green boat on snow."]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def net() -> MultimodalNet:
    clip = load_clip("tiny")
    torch.manual_seed(0)
    return MultimodalNet(clip, make_fusion(clip, "none", 16, 2, 2), 4, tune="none").eval()


def batch(n: int = 3, seed: int = 0):
    """Bytes of n pictures (n, 3, 48, 48) and their tokens."""
    images = torch.randint(0, 256, (n, 3, 48, 48), generator=draw(seed), dtype=torch.uint8)
    ids = load_clip("tiny").tokenize([TEXTS[i % 3] for i in range(n)])
    return images, full_tokens(patchify(images, SIDE), ids)


def some(tokens, seed: int = 1):
    """A choice of patches and words, special words among them."""
    patches = torch.rand(tokens.seen.shape, generator=draw(seed)) < 0.3
    words = (torch.rand(tokens.word_seen.shape, generator=draw(seed + 1)) < 0.5) | special(tokens)
    return patches, words & tokens.word_seen


def memory_args(**changes) -> Namespace:
    return Namespace(**{
        "buffer_bytes_per_class": "2x", "buffer_bytes": None, "budget_unit": "bytes_raw", "budget_fill": "stop",
        "exemplar_codec": "masked", "mask_rule": "mean", "text_rule": "union", "direction": "i2t", "sum_beta": 1.0,
        "jpeg_quality": 50, "box_threshold": 0.6,
    } | changes)  # fmt: skip


# records ----------------------------------------------------------------------------------------------------------


def test_a_masked_record_holds_what_was_kept_and_is_as_long_as_said(tmp_path):
    _, tokens = batch()
    patches, words = some(tokens)
    kept = select(tokens, patches, words)
    records = [to_bytes(kept.rows(i), 7 + 300 * i, CELLS, "masked") for i in range(3)]
    memory = RecordMemory(3 * SIDE**2)
    memory.add(records)
    for i, record in enumerate(records):
        n, m = int(patches[i].sum()), int(words[i].sum())
        assert len(record) == 9 + 5 + n * 192 + 3 * m == int(memory.sizes[i])
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
    memory.data[20:60] = 0
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


# budget and choice -------------------------------------------------------------------------------------------------


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


# network -----------------------------------------------------------------------------------------------------------


def test_a_patch_alone_is_the_convolution_at_its_cell_and_all_patches_are_the_picture():
    images, tokens = batch()
    pixels = net().clip.normalize_images(images)
    conv = net().clip.clip.visual.conv1(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(net().embed_patches(tokens.patches), conv, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        image, _, _ = net().image_states(tokens)
        text, _ = net().text_states(tokens)
        torch.testing.assert_close(image, net().clip.image_tokens(pixels), atol=1e-4, rtol=1e-4)
        expected = net().clip.text_tokens(tokens.ids)
        torch.testing.assert_close(text[tokens.word_seen], expected[tokens.word_seen], atol=1e-4, rtol=1e-4)
        whole = select(tokens, tokens.seen, tokens.word_seen)
        torch.testing.assert_close(net().features(whole), net().features(tokens), atol=1e-5, rtol=1e-5)


def test_what_is_dropped_and_what_is_padding_changes_nothing():
    _, tokens = batch()
    patches, words = some(tokens)
    with torch.no_grad():
        expected = net().features(select(tokens, patches, words))
        other = tokens._replace(patches=torch.where(patches[..., None], tokens.patches, 255 - tokens.patches))
        other = other._replace(ids=torch.where(words, tokens.ids, 5))
        assert torch.equal(net().features(select(other, patches, words)), expected)
        alone = torch.cat([net().features(select(*(t.rows([i]) if hasattr(t, "rows") else t[[i]] for t in (tokens, patches, words)))) for i in range(3)])  # fmt: skip
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net().attend(tokens)[0], net().features(tokens), atol=1e-5, rtol=1e-5)


def test_attention_sums_to_one_and_gives_padding_none():
    _, tokens = batch()
    cut = select(tokens, *some(tokens))
    _, found = net().attend(cut)
    assert (found.image[~cut.seen] == 0).all() and (found.text[~cut.word_seen] == 0).all()
    both = torch.cat([found.image, found.text], dim=1).sum(1)
    assert (both < 1).all() and (both > 0.5).all(), "the rest goes to the two class tokens"
    tower = net().attend(cut, source="tower")[1]
    torch.testing.assert_close(tower.image.sum(1), torch.ones(3))


def test_ssf_folds_back_exactly_and_only_it_is_trained():
    clip = load_clip("tiny")
    x = torch.randn(2, 3, 48, 48, generator=draw(3))
    with torch.no_grad():
        plain = clip.image_tokens(x)
        names = add_ssf(clip.clip, layers_of(clip.clip))
        assert {n.rpartition(".")[2] for n, p in clip.named_parameters() if p.requires_grad} == {"gamma", "beta"}
        adapted = clip.image_tokens(x)
        assert (adapted - plain).abs().max() > 1e-3
        fold(clip.clip, names)
        torch.testing.assert_close(clip.image_tokens(x), adapted, atol=1e-5, rtol=1e-5)
    assert count(clip) == 0


def test_ssf_of_a_base_transformer_counts_205824():
    width = 768
    block = {"ln_1": torch.nn.LayerNorm(width), "qkv": torch.nn.Linear(width, 3 * width), "out": torch.nn.Linear(width, width),
             "ln_2": torch.nn.LayerNorm(width), "fc1": torch.nn.Linear(width, 4 * width), "fc2": torch.nn.Linear(4 * width, width)}  # fmt: skip
    layers = {"patch": torch.nn.Conv2d(3, width, 32, 32, bias=False), "norm": torch.nn.LayerNorm(width)}
    with torch.device("meta"):
        tower = torch.nn.ModuleDict(
            layers | {f"{n}{i}": type(m)(*sizes(m)) for i in range(12) for n, m in block.items()}
        )
    add_ssf(tower.to_empty(device="cpu"), layers_of(tower))
    assert count(tower) == 205824


def sizes(layer: torch.nn.Module) -> tuple:
    return (layer.in_features, layer.out_features) if isinstance(layer, torch.nn.Linear) else (layer.normalized_shape,)


# augmentation and loss ---------------------------------------------------------------------------------------------


def test_partners_are_others_of_the_class():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    for seed in range(20):
        found = token_augment.partners(labels, torch.arange(6), draw(seed))
        assert torch.equal(labels[found], labels) and found[5] == 5 and (found[:5] != torch.arange(5)).all()


def test_swap_takes_the_text_and_mix_both():
    _, tokens = batch(3)
    own = select(tokens, *some(tokens))
    other = select(tokens.rows([1, 2, 0]), *some(tokens.rows([1, 2, 0]), seed=5))
    use = torch.tensor([True, False, True])
    swapped = token_augment.swap(own, other, use)
    assert torch.equal(swapped.patches, own.patches)
    for i in range(3):
        wanted = other if use[i] else own
        assert torch.equal(swapped.ids[i, swapped.word_seen[i]], wanted.ids[i, wanted.word_seen[i]])
    mixed = token_augment.mix_patches(own, other, use, longest=32)
    for i in range(3):
        cells = set(own.places[i, own.seen[i]].tolist()) | (
            set(other.places[i, other.seen[i]].tolist()) if use[i] else set()
        )
        assert set(mixed.places[i, mixed.seen[i]].tolist()) == cells and int(mixed.seen[i].sum()) == len(cells)
        words = mixed.ids[i, mixed.word_seen[i]]
        assert words[0] == tokens.ids.max() - 1 and words[-1] == tokens.ids.max(), "start and end of text"
        assert len(words) == int(own.word_seen[i].sum()) + (int(other.word_seen[i].sum()) - 2 if use[i] else 0)
    assert int(token_augment.mix_patches(own, other, use, longest=6).word_seen.sum(1).max()) <= 6


def test_background_fills_empty_cells_and_token_drop_only_drops():
    _, tokens = batch(3)
    own = select(tokens, *some(tokens))
    lent = 255 - tokens.patches
    spare = torch.rand(3, CELLS, generator=draw(8)) < 0.5
    filled = token_augment.background(own, lent, spare, torch.tensor([True, True, False]))
    taken = [set(own.places[i, own.seen[i]].tolist()) for i in range(3)]
    for i in range(3):
        cells = taken[i] | (set(spare[i].nonzero().flatten().tolist()) if i < 2 else set())
        assert set(filled.places[i, filled.seen[i]].tolist()) == cells
        for patch, place in zip(
            filled.patches[i, filled.seen[i]], filled.places[i, filled.seen[i]].tolist(), strict=True
        ):
            assert torch.equal(patch, (tokens.patches if place in taken[i] else lent)[i, place])
    fewer = token_augment.token_drop(own, 0.5, draw(9))
    assert 0 < int(fewer.seen.sum()) < int(own.seen.sum()) and (fewer.word_seen.sum(1) >= 2).all()


def test_distillation_is_nothing_where_both_agree():
    logits = torch.randn(4, 5, generator=draw(1))
    assert float(soft_divergence(logits, logits, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(soft_divergence(logits.flip(0), logits, 2.0)) > 0.01


# runs --------------------------------------------------------------------------------------------------------------


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
    [("text_rule", "class_only", {}), ("direction", "t2i", {}), ("sum_beta", 5.0, {"text_rule": "sum"}),
     ("box_threshold", 0.95, {"exemplar_codec": "box"}), ("jpeg_quality", 5, {"exemplar_codec": "jpeg"})],
)  # fmt: skip
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


def test_pictures_or_texts_alone_and_augmentation_on_pairs():
    """--look_at leaves one half out; each --exemplar_aug and its probability change what is replayed."""
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
