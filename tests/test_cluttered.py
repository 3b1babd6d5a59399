"""The cluttered world: object cells, captions, evidence columns, pixels; and the mask controls that it is for."""

import hashlib
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backbone.clip_files import TINY_DIR
from backbone.tiny_tokenizer import TinyTokenizer, build_pieces
from datasets.tiny_world import cluttered, streams
from datasets.tiny_world.bank import N_ENTRIES
from datasets.tiny_world.captions import NAMES
from datasets.tiny_world.clutter import SHAPES
from datasets.tiny_world.render import render
from scripts import tiny_lessons
from utils.engine.evaluate import TaskScores
from utils.errors import UserError
from utils.memory.exemplar_memory import ExemplarMemory, mask_rule
from utils.memory.exemplars import balanced_head
from utils.memory.masks import image_mask
from utils.memory.records import full_tokens

PINNED = ["51a6b427fe7dcbcb", "342e4cccfafb3ae3", "5e7dae9f53c74ed6"]


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def stream():
    return streams.mm_tiny(False)


def described(n: int, seed: int = 5, **change) -> dict:
    index = np.arange(n)
    given = dict(kind=index % 40, shown=np.ones(n, bool), scale=np.full(n, 0.4), shapes=np.full(n, 3)) | change
    return cluttered.sample(seed, index, 7, **given)


# ---- images


def test_pinned_checksums(stream):
    """Exact bytes, no tolerance: shapes, objects amid them, and the stream."""
    alone = cluttered.pictures(described(12, shapes=np.zeros(12, int)))
    crowded = cluttered.pictures(cluttered.pre_training(1, np.arange(24)))
    assert [digest(images) for images in (alone, crowded, stream["images"])] == PINNED


def test_object_cells_are_where_removing_the_object_changes_the_image():
    """The oracle draws each image with and without its object and compares pixels, patch by patch."""
    spec = described(24)
    bare = dict(spec, which=np.roll(spec["which"], -1, 1), scale=np.roll(spec["scale"], -1, 1), count=spec["count"] - 1)
    bare |= {name: np.roll(spec[name], -1, 1) for name in ("cx", "cy", "turn", "mirror")}
    difference = (render(spec, 64).int() - render(bare, 64).int()).abs().amax(1)  # (B, 64, 64)
    cells = cluttered.object_cells(spec)
    for i in range(24):
        for cell in range(64):
            y, x = 8 * (cell // 8), 8 * (cell % 8)
            patch = difference[i, y : y + 8, x : x + 8]
            if cells[i, cell]:
                assert patch.max() > 0, (i, cell)
            else:  # the rim and soft edges alone
                assert (patch > 60).sum() <= 16, (i, cell)


def test_objects_are_small_and_absent_ones_have_no_cells(stream):
    shown = stream["evidence"] != 1
    share = stream["cells"][shown].float().mean(1)
    assert 0.08 < float(share.mean()) < 0.2 and float(share.max()) < 0.35
    assert not stream["cells"][~shown].any()


def test_shapes_are_in_no_class_and_all_appear():
    spec = described(400)
    assert spec["kind"][:, 0].max() < 40 and spec["kind"][:, 1:].min() == N_ENTRIES
    assert set(np.unique(spec["kind"][:, 1:] - N_ENTRIES)) == set(range(len(SHAPES)))
    places = np.stack([spec["cx"] > 0.5, spec["cy"] > 0.5], -1) @ [1, 2]
    assert (np.sort(places, 1) == np.arange(4)).all()  # one in each quadrant
    assert np.bincount(places[:, 0], minlength=4).min() > 60  # and the object anywhere


# ---- captions


def test_captions_have_20_to_40_words_and_tell_the_truth(stream):
    words = [len(text.split()) for text in stream["captions"]]
    assert min(words) >= 20 and max(words) <= 40
    kinds = streams.mm_tiny_kinds()
    for text, label, evidence in zip(stream["captions"], stream["labels"], stream["evidence"], strict=True):
        named = {k for k, name in enumerate(NAMES) if f" {name} " in f"{text} "}
        assert named <= set(kinds[label]) and len(named) == int(evidence != 0), text
        assert (" object " in text) == (evidence == 0)


def test_shapes_of_a_caption_are_in_the_image():
    spec = described(200, shapes=np.arange(200) % 4)
    for i, text in enumerate(cluttered.captions(spec, spec["kind"][:, 0], np.full(200, 3))):
        drawn = [SHAPES[k - N_ENTRIES] for k in spec["kind"][i, 1 : 1 + spec["shapes"][i]]]
        told = [word for word in text.replace(".", "").replace(",", "").split() if word in SHAPES]
        assert all(told.count(shape) <= drawn.count(shape) for shape in told), text


# ---- evidence


def test_accuracy_by_evidence_by_hand(stream):
    counts = stream["evidence"].bincount(minlength=3) / len(stream["evidence"])
    assert (counts - torch.tensor([0.375, 0.25, 0.375])).abs().max() < 0.08
    scores = TaskScores(parts={"correct": [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])]})
    samples = SimpleNamespace(evidence=torch.tensor([2, 0, 0, 1, 2]))
    split = SimpleNamespace(samples=samples, rows=torch.tensor([1, 2, 4, 3]))  # evidence 0 0 2 1
    dataset = SimpleNamespace(EVIDENCE=("image_only", "caption_only", "both"))
    assert scores.by_evidence(dataset, split) == {"image_only": 50.0, "caption_only": 100.0, "both": 100.0}
    assert scores.by_evidence(dataset, SimpleNamespace(samples=SimpleNamespace())) == {}


# ---- masks


def test_controls_keep_as_many_patches_as_the_mean_rule():
    attention = torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) ** 3
    seen = torch.ones(6, 64, dtype=torch.bool)
    mean, inverse = image_mask(attention, seen), image_mask(attention, seen, "inverse")
    assert torch.equal(mean.sum(1), inverse.sum(1)) and not (mean & inverse).any()
    for row in range(6):  # the least attended, by sorting
        least = attention[row].argsort()[: int(mean[row].sum())]
        assert set(inverse[row].nonzero().flatten().tolist()) == set(least.tolist())
    few = image_mask(attention, seen, "random", 0.125)
    assert few.sum(1).tolist() == [8] * 6 and len({tuple(row.tolist()) for row in few}) == 6


def memory(**flags) -> ExemplarMemory:
    given = {"exemplar_codec": "masked", "budget_unit": "bytes_raw", "jpeg_quality": None, "text_rule": "none"}
    return ExemplarMemory(Namespace(**given | {"direction": "i2t", "sum_beta": 1.0} | flags), 192, 64)


def test_oracle_keeps_the_objects_cells_whatever_attends():
    tokens = full_tokens(torch.zeros(2, 64, 192, dtype=torch.uint8), torch.tensor([[1, 2, 9], [1, 3, 9]]))
    attention = SimpleNamespace(image=torch.linspace(0, 1, 64).expand(2, -1), text=torch.rand(2, 3))
    attention.i2t, attention.t2i = torch.rand(2, 64, 3), torch.rand(2, 3, 64)
    cells = torch.zeros(2, 64, dtype=torch.bool)
    cells[0, [3, 4, 11, 12, 20]] = True
    patches, _ = memory(mask_rule="oracle").masks(attention, tokens, cells)
    assert torch.equal(patches[0], cells[0])
    assert patches[1].nonzero().flatten().tolist() == [60, 61, 62, 63]  # no object: the four most attended
    assert not memory(mask_rule="text_only").masks(attention, tokens)[0].any()
    with pytest.raises(UserError, match="no patches to store as JPEG"):
        memory(mask_rule="text_only", exemplar_codec="masked_jpeg")


def test_mask_rules_are_checked():
    assert [mask_rule(text) for text in ("oracle", "inverse", "text_only", "random", "random:0.2")]
    for text in ("random:2", "oracle:1", "inverse:0.5", "random:x"):
        with pytest.raises(Exception, match="is not one of"):
            mask_rule(text)


# ---- heads


def test_balanced_head_weighs_classes_not_exemplars():
    """Against the normal equations of samples written out; copies of a class's exemplars change nothing."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(9, 4, generator=draw), dim=1)
    owners = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    found = balanced_head(rows, owners, 3, 0.1)
    gram, cross = 0.1 * np.eye(5), np.zeros((5, 3))
    for row, owner in zip(rows.double().numpy(), owners.tolist(), strict=True):
        h = np.append(row, 1.0)
        gram += np.outer(h, h) / {0: 5, 1: 2, 2: 2}[owner]
        cross[:, owner] += h / {0: 5, 1: 2, 2: 2}[owner]
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(gram, cross), atol=1e-5)
    again = balanced_head(torch.cat([rows, rows[5:7]]), torch.cat([owners, owners[5:7]]), 3, 0.1)
    torch.testing.assert_close(again, found)


# ---- the CLIP of this world


def test_a_clip_starts_from_one_of_another_canvas_and_vocabulary():
    from clip.model import CLIP

    old = load_file(TINY_DIR / "model.safetensors")
    known = TinyTokenizer.load(TINY_DIR / "vocab.json")
    tokenizer = TinyTokenizer(build_pieces(["a striped fish beside a hexagon"]))
    model = CLIP(128, 64, 4, 128, 8, 56, tokenizer.vocab_size, 128, 2, 2).float()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    tiny_lessons.start_from(TINY_DIR, model, tokenizer)
    words, place = model.token_embedding.weight, "visual.positional_embedding"
    assert torch.equal(words[tokenizer.ids["fish</w>"]], old["token_embedding.weight"][known.ids["fish</w>"]].float())
    assert torch.equal(words[tokenizer.end], old["token_embedding.weight"][known.end].float())
    assert "agon</w>" not in known.ids  # a piece that the old one did not have keeps its new embedding
    row = tokenizer.ids["agon</w>"]
    assert torch.equal(words[row], fresh["token_embedding.weight"][row])
    assert torch.equal(model.positional_embedding[32:], fresh["positional_embedding"][32:])
    grids = [s[place][1:].float().view(n, n, -1) for s, n in ((old, 6), (model.state_dict(), 8))]
    assert torch.cosine_similarity(grids[0][0, 0], grids[1][0, 0], dim=0) > 0.9  # a corner is still a corner
    assert torch.equal(model.visual.conv1.weight, old["visual.conv1.weight"].float())


def test_lessons_tell_what_is_shown():
    images, texts, labels = tiny_lessons.lesson(1, np.arange(40), 0)
    assert images.shape == (40, 3, 64, 64) and {len(v) for v in labels.values()} == {40}
    for text, kind, named in zip(texts, labels["kind"].tolist(), labels["named"].tolist(), strict=True):
        assert (named == 40) == ("some shapes" in text) and (named == 41) == (" object " in text)
        assert named >= 40 or (named == kind and NAMES[kind] in text)


@pytest.mark.parametrize("rule", ["text_only", "oracle"])
def test_controls_run_and_their_records_hold_what_they_say(rule, run_main, monkeypatch):
    monkeypatch.setattr(streams, "MM_SIZE", {True: 6, False: 4})
    flags = "--model exemplar-masking --dataset mm-tiny --picture_seed 9 --debug_mode 1 --stop_after 1 --seed 0"
    flags += " --predict balanced"
    flags += " --fusion_weights none --fusion_width 16 --fusion_layers 1 --fusion_heads 2 --mask_rule"
    code, rows = run_main(*flags.split(), rule)
    assert code == 0
    (task,) = [row for row in rows if row["type"] == "task" and row["task"] == 1]
    scores = task["scores"]
    assert {"image_only", "caption_only", "both", "linear", "nme"} <= set(scores) and "balanced" not in scores
    kept, each = scores["kept_patches"][0], scores["exemplar_bytes"][0]
    assert (kept == 0 and each < 120) if rule == "text_only" else (6 < kept < 30 and each > 192 * 64 * kept / 100)


def test_an_oracle_needs_a_stream_that_tells(run_main, capsys):
    flags = "--model exemplar-masking --dataset seq-tiny --clip_backbone tiny --debug_mode 1 --mask_rule oracle"
    code, _ = run_main(*flags.split())
    assert code == 2 and "does not tell where its objects are" in capsys.readouterr().err
