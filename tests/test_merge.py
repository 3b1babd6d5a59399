"""Merging of weight differences: rules by hand, order of tasks, what the model keeps and starts from."""

import pytest
import torch

from models.utils.merging import larger, ties, trimmed
from tests import contract
from utils.errors import UserError
from utils.gradients import flat


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


A = torch.tensor([3.0, -1.0, 0.5, 2.0])
B = torch.tensor([-1.0, -2.0, 1.5, 0.1])
C = torch.tensor([2.0, 4.0, -1.0, 0.2])


def test_rules_by_hand():
    assert larger(larger(A, B), C).tolist() == [3.0, 4.0, 1.5, 2.0]
    assert torch.equal(larger(C, B), larger(B, C)) and larger(C, B).tolist() == pytest.approx([2.0, 4.0, 1.5, 0.2])
    assert larger(torch.tensor([-3.0, 1.0]), torch.tensor([2.0, -2.0])).tolist() == [-3.0, -2.0]
    assert trimmed(A, 0.5).tolist() == [3.0, 0.0, 0.0, 2.0] and torch.equal(trimmed(A, 1.0), A)
    # halves kept: [3, 0, 0, 2], [0, -2, 1.5, 0], [2, 4, 0, 0]; sums 5, 2, 1.5, 2
    assert ties([A, B, C], 0.5).tolist() == pytest.approx([2.5, 4.0, 1.5, 2.0])
    assert torch.equal(ties([A], 1.0), A)
    same = [A.abs(), 3 * A.abs()]
    torch.testing.assert_close(ties(same, 1.0), 2 * A.abs())  # no conflict: the mean
    assert torch.equal(ties([A, B, C], 0.5), ties([C, A, B], 0.5))


def merged(rule: str, start: str = "previous", alpha=None):
    """A model whose tasks move its weights by A, B and C from the start of a task, on the first four weights."""
    toy = contract.build("merge", rule=rule, merge_start=start, **({} if alpha is None else {"merge_alpha": alpha}))
    model = toy.model
    for tau in (A, B, C):
        toy.dataset.get_data_loaders()
        model.meta_begin_task(toy.dataset)
        weights = flat(model.get_parameters())
        weights[:4] += tau
        model.load(weights)
        model.meta_end_task(toy.dataset)
    return model, (flat(model.get_parameters()) - model.origin)[:4]


@pytest.mark.parametrize("start", ["previous", "pretrained"])
def test_the_model_is_the_start_plus_alpha_times_the_merge(start):
    taus = [A, A + B, A + B + C] if start == "previous" else [A, B, C]
    wanted = {
        "mean": sum(taus) / 3,
        "task-arithmetic": sum(taus),
        "magmax": torch.stack(taus).gather(0, torch.stack(taus).abs().argmax(0)[None])[0],
    }
    for rule, value in wanted.items():
        model, found = merged(rule, start, 0.5)
        torch.testing.assert_close(found, 0.5 * value, atol=1e-5, rtol=1e-5)
        assert len(model.taus) == 1
    assert torch.equal(merged("mean", start, 0.0)[1], torch.zeros(4))


def test_ties_keeps_every_vector_and_each_rule_has_its_alpha():
    model, _ = merged("ties", alpha=0.5)
    assert len(model.taus) == 3 and model.keep == 0.2
    assert contract.build("merge", rule="ties", ties_keep=0.6).model.keep == 0.6
    with pytest.raises(UserError, match="--ties_keep changes nothing with --rule mean"):
        contract.build("merge", rule="mean", ties_keep=0.5)


def test_only_the_image_tower_moves_and_names_are_encoded_once_a_task(monkeypatch):
    toy = contract.build("merge")
    model = toy.model
    before = {k: v.clone() for k, v in model.net.clip.state_dict().items()}
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    monkeypatch.setattr(model.net, "encode_text", None)
    batch = next(iter(toy.dataset.train_loader))
    for _ in range(2):
        model.meta_observe(*batch[:3], epoch=0)
    moved = {k for k, v in model.net.clip.state_dict().items() if not torch.equal(v, before[k])}
    trained = {k for k, p in model.net.clip.named_parameters() if p.requires_grad}
    assert moved and all(name.startswith("visual.") for name in moved | trained)
