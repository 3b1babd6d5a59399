"""Bytes of a record: words by the bit, JPEG without its tables, masks and JPEG of any quality together."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.multimodal import Attention
from datasets.tiny_world import world
from datasets.tiny_world.render import render
from datasets.tiny_world.streams import BANK_SEED
from tests.multimodal_toys import CELLS, SIDE, draw, memory_args
from utils.errors import UserError
from utils.memory.exemplar_memory import ExemplarMemory
from utils.memory.record_buffer import RecordBuffer
from utils.memory.records import KINDS, RecordMemory, full_tokens, jpeg_tables, patchify, select, to_bytes


def scenes(n: int = 6, length: int = 20):
    """Tokens of images of the world with texts of `length` words."""
    images = render(world.sample(5, np.arange(n), BANK_SEED, layout=world.SINGLE))
    ids = torch.randint(1, 400, (n, length), generator=draw(1))
    ids[:, 0], ids[:, -1] = 500, 501
    return images, full_tokens(patchify(images, SIDE), ids)


def keep(tokens, patches: int, words: int):
    """So many patches, and so many words beside start and end."""
    kept, named = torch.zeros_like(tokens.seen), torch.zeros_like(tokens.word_seen)
    for i in range(len(kept)):
        kept[i, torch.randperm(CELLS, generator=draw(i))[:patches]] = True
        named[i, 1 + torch.randperm(named.shape[1] - 2, generator=draw(i + 50))[:words]] = True
    named[:, 0] = named[:, -1] = True
    return select(tokens, kept, named)


def words_cost(tokens, kind: str, m: int) -> int:
    """Bytes that the text takes in a record of no patches."""
    return len(to_bytes(tokens.rows(0), 0, CELLS, kind)) - 9 - (5 if kind == "masked" else 0)


@pytest.mark.parametrize("length", [2, 9, 20, 77, 300])
def test_dropping_words_saves_bytes(length):
    """Two bytes a kept word and a bit for each position against two bytes for each position of a full record."""
    _, tokens = scenes(1, length)
    nothing = tokens._replace(seen=torch.zeros_like(tokens.seen))
    full = words_cost(nothing, "raw", length)
    assert full == 2 * length and words_cost(nothing, "masked", length) == full + 1, "kept whole: one byte more"
    for words in range(0, length - 2):
        found = words_cost(keep(nothing, 0, words), "masked", words + 2)
        assert found == 2 * (words + 2) + -(-length // 8) + 1
        assert found < full or length - 2 - words <= 1 + length / 16, "of 16 words two can go without gain"


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_all_lengths_come_back_together(kind):
    """Texts kept whole and in parts, of several lengths, in one batch."""
    _, tokens = scenes(6, 30)
    if kind in {"masked", "masked_jpeg"}:
        parts = [keep(tokens.rows(slice(i, i + 1)), 5 + 4 * i, words) for i, words in enumerate((28, 0, 3, 27, 11, 28))]
    else:
        parts = [tokens.rows(slice(i, i + 1)) for i in range(6)]
    inside = torch.arange(CELLS) % 5 == 0
    memory = RecordMemory(192)
    memory.add([to_bytes(part.rows(0), i, CELLS, kind, 95, inside) for i, part in enumerate(parts)])
    back = memory.decode(torch.arange(6))
    for i, part in enumerate(parts):
        assert back.ids[i, back.word_seen[i]].tolist() == part.ids[0, part.word_seen[0]].tolist()
        assert back.word_places[i, back.word_seen[i]].tolist() == part.word_places[0, part.word_seen[0]].tolist()
        assert back.places[i, back.seen[i]].tolist() == part.places[0, part.seen[0]].tolist()


def test_pictures_without_text_pay_nothing_for_it():
    memory = RecordBuffer(10, attention=lambda x: (torch.arange(16.0).expand(len(x), -1), None))
    memory.add_data(torch.rand(3, 3, 16, 16), labels=torch.arange(3))
    assert memory.records.sizes.tolist() == [9 + 2 + 8 * 48] * 3


# JPEG


@pytest.mark.parametrize("quality", [1, 50, 95])
def test_tables_are_the_same_for_all_pictures_and_left_out(quality):
    images, tokens = scenes(4)
    for i in range(4):
        whole = io.BytesIO()
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(whole, "JPEG", quality=quality)
        tables = jpeg_tables(48, 48, quality)
        assert whole.getvalue().startswith(tables) and len(tables) > 600
        record = to_bytes(tokens.rows(i), 3, CELLS, "jpeg", quality)
        assert len(record) == 9 + 1 + len(whole.getvalue()) - len(tables) - 2 + 2 * 20
        memory = RecordMemory(192)
        memory.add([record])
        wanted = np.array(Image.open(io.BytesIO(whole.getvalue())).convert("RGB"))
        found = memory.decode(torch.tensor([0])).patches
        assert torch.equal(found, patchify(torch.from_numpy(wanted).permute(2, 0, 1)[None], SIDE))


@pytest.mark.parametrize("patches", [1, 4, 5, 12, 13, 35, 36])
def test_kept_patches_in_any_number_come_back_from_jpeg(patches):
    smooth = (torch.arange(48)[:, None] * 2 + torch.arange(48)).to(torch.uint8).expand(1, 3, -1, -1)
    tokens = keep(full_tokens(patchify(smooth, SIDE), torch.tensor([[500, 7, 501]])), patches, 1)
    memory = RecordMemory(192)
    memory.add([to_bytes(tokens.rows(0), 0, CELLS, "masked_jpeg", 95)])
    back = memory.decode(torch.tensor([0]))
    assert torch.equal(back.places, tokens.places)
    assert (back.patches.float() - tokens.patches.float()).abs().mean() < 8


# the flags


def kept_records(**changes) -> list[bytes]:
    _, tokens = scenes()
    n, m = CELLS, tokens.ids.shape[1]
    attention = Attention(*(torch.rand(6, *shape, generator=draw(4)) for shape in ((n,), (m,), (n, m), (m, n))))
    memory = ExemplarMemory(memory_args(**changes), 192, CELLS)
    patches, words = memory.masks(attention, tokens)
    return [memory.record(tokens.rows(i), 0, patches[i], words[i]) for i in range(6)]


@pytest.mark.parametrize(
    "base",
    [
        {"exemplar_codec": "jpeg"},
        {"exemplar_codec": "masked_jpeg"},
        {"budget_unit": "bytes_jpeg"},
        {"budget_unit": "bytes_jpeg", "exemplar_codec": "raw"},
    ],
)
def test_the_quality_is_that_of_every_record_that_holds_a_jpeg(base):
    coarse, fine, default = (sum(map(len, kept_records(**base, jpeg_quality=q))) for q in (20, 90, None))
    assert coarse < default < fine or (base.get("budget_unit") and coarse < fine < default)


def test_masks_and_jpeg_compose():
    """Half the patches are kept here."""
    size = {
        codec: sum(map(len, kept_records(exemplar_codec=codec))) for codec in ("raw", "masked", "jpeg", "masked_jpeg")
    }
    assert size["masked_jpeg"] < 0.7 * size["jpeg"] and size["masked_jpeg"] < 0.25 * size["masked"] < 0.25 * size["raw"]


@pytest.mark.parametrize("codec", ["masked", "raw", "box"])
def test_a_quality_that_no_record_has_is_refused(codec):
    with pytest.raises(UserError, match="--jpeg_quality"):
        ExemplarMemory(memory_args(exemplar_codec=codec, jpeg_quality=30), 192, CELLS)


def test_a_masked_record_is_smaller_than_a_full_one_by_what_is_dropped():
    _, tokens = scenes(1)
    full = len(to_bytes(tokens.rows(0), 0, CELLS, "raw"))
    kept = keep(tokens, 12, 3)
    masked = len(to_bytes(kept.rows(0), 0, CELLS, "masked"))
    length = int(tokens.word_seen[0].sum())
    assert full - masked == 24 * 192 + 2 * (length - 5) - 5 - -(-length // 8) - 1
