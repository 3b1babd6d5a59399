"""Masks of patches and words: the published rule on numbers, guards, equivariance, and which words each rule keeps."""

import pytest
import torch

from utils.memory.masks import context_attention, image_mask, random_like, text_mask


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_rule_is_strict_and_leaves_padding_out():
    attention = torch.tensor([[0.5, 0.1, 0.3, 0.3, 0.3, 9.0]])
    seen = torch.tensor([[True, True, True, True, True, False]])
    assert image_mask(attention, seen, least=1).tolist() == [[True, False, False, False, False, False]]  # mean is 0.3
    assert image_mask(attention, torch.ones_like(seen), least=1).tolist() == [[False] * 5 + [True]]
    attention[0, 2] = 0.4
    assert image_mask(attention, seen, least=1)[0].nonzero().flatten().tolist() == [0, 2]  # mean is 0.32


def test_guard_fills_up_with_the_largest():
    attention = torch.full((1, 9), 0.1)
    assert int(image_mask(attention, torch.ones(1, 9, dtype=torch.bool)).sum()) == 4
    attention[0, 6] = 0.5
    kept = image_mask(attention, torch.ones(1, 9, dtype=torch.bool))
    assert int(kept.sum()) == 4 and kept[0, 6]
    assert int(image_mask(attention[:, :3], torch.ones(1, 3, dtype=torch.bool)).sum()) == 3, "as many as there are"


@pytest.mark.parametrize(("rule", "level"), [("mean", 1), ("scaled", 1.3), ("ratio", 0.25), ("mass", 0.6), ("none", 1)])
def test_a_permutation_of_patches_permutes_the_mask(rule, level):
    attention, seen, order = draw(0, 3, 36), torch.ones(3, 36, dtype=torch.bool), torch.randperm(36)
    mask = image_mask(attention, seen, rule, level)
    assert torch.equal(image_mask(attention[:, order], seen[:, order], rule, level), mask[:, order])


def test_ratio_and_mass_by_hand():
    attention, seen = torch.tensor([[0.4, 0.1, 0.3, 0.2]]), torch.ones(1, 4, dtype=torch.bool)
    assert image_mask(attention, seen, "ratio", 0.5, least=1).tolist() == [[True, False, True, False]]
    assert image_mask(attention, seen, "scaled", 1.3, least=1).tolist() == [[True, False, False, False]]  # above 0.325
    assert image_mask(attention, seen, "mass", 0.7, least=1).tolist() == [[True, False, True, False]]
    assert image_mask(attention, seen, "mass", 0.75, least=1).tolist() == [[True, False, True, True]]


def test_random_keeps_as_many_elsewhere():
    attention, seen = draw(1, 200, 36), draw(2, 200, 36) > 0.2
    rng = torch.Generator().manual_seed(3)
    mean, drawn = image_mask(attention, seen), image_mask(attention, seen, "random", rng=rng)
    assert torch.equal(mean.sum(1), drawn.sum(1)) and not (drawn & ~seen).any() and not torch.equal(mean, drawn)
    often = random_like(
        torch.tensor([[True] * 9 + [False] * 27]).expand(4000, -1), torch.ones(4000, 36, dtype=torch.bool), rng
    )
    assert (often.float().mean(0) - 0.25).abs().max() < 0.04, "every place is as likely"


def test_words_of_the_discarded_patches_are_context():
    """Word 0: the class token looks at it. 1: only discarded patches. 2: only kept patches. 3: nobody."""
    words = torch.ones(1, 4, dtype=torch.bool)
    by_class = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    i2t = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.0, 0.9, 0.1, 0.0], [0.1, 0.8, 0.1, 0.0]]])  # patch 0 is kept
    context = context_attention(torch.tensor([[False, True, True]]), i2t, i2t.transpose(1, 2))
    torch.testing.assert_close(context, torch.tensor([[0.05, 0.85, 0.10, 0.0]]))
    kept = {
        rule: text_mask(by_class, context, words, rule, least=1)[0].tolist()
        for rule in ("class_only", "context_only", "union")
    }
    assert kept == {
        "class_only": [True, False, False, False],
        "context_only": [False, True, False, False],
        "union": [True, True, False, False],
    }
    assert text_mask(by_class, context, words, "sum", beta=0.0, least=1)[0].tolist() == [True, False, False, False]


def test_directions_are_the_two_attentions_and_their_mean():
    i2t, t2i, discarded = draw(4, 2, 5, 3), draw(5, 2, 3, 5), draw(6, 2, 5) > 0.5
    slow = [
        [sum(i2t[b, i, j] for i in range(5) if discarded[b, i]) / discarded[b].sum() for j in range(3)]
        for b in range(2)
    ]
    found = context_attention(discarded, i2t, t2i, "i2t")
    torch.testing.assert_close(found, torch.tensor(slow))
    other = torch.stack([torch.stack([t2i[b, j, discarded[b]].mean() for j in range(3)]) for b in range(2)])
    torch.testing.assert_close(context_attention(discarded, i2t, t2i, "t2i"), other)
    torch.testing.assert_close(context_attention(discarded, i2t, t2i, "both"), (found + other) / 2)


def test_union_holds_both_parts_and_padding_none():
    attention, context, words = draw(7, 50, 12), draw(8, 50, 12), torch.arange(12) < 9
    words = words.expand(50, -1)
    union, parts = (
        text_mask(attention, context, words),
        [text_mask(attention, context, words, r) for r in ("class_only", "context_only")],
    )
    assert torch.equal(union, parts[0] | parts[1]) and not (union & ~words).any()
    assert (text_mask(torch.ones(2, 12), torch.ones(2, 12), words[:2]).sum(1) == 2).all(), "the guard: two words"
    assert not text_mask(attention, context, torch.zeros_like(words)).any(), "a text without words"
