"""PNN: columns and their lateral connections by hand; old columns do not move."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests import contract


@pytest.fixture(scope="module")
def runs():
    with contract.toys():
        return [contract.run("pnn", stop_after=t) for t in (0, 1)]


@torch.no_grad()
def test_logits_by_hand(runs):
    model, (x, _) = runs[1].model, contract.images_of(runs[1])
    first, second = (net(x, returnt="features") for net in (model.columns[0], model.net))
    old = first @ model.heads[0].weight.T + model.heads[0].bias
    hidden = (float(model.scales[0][0]) * first) @ model.reduce[0].weight.T + model.reduce[0].bias
    new = second @ model.heads[1].weight.T + model.heads[1].bias
    new = new + hidden.clamp(min=0) @ model.expand[0].weight.T + model.expand[0].bias
    found = model(x)
    torch.testing.assert_close(found[:, :5], torch.cat([old, new], dim=1), atol=1e-5, rtol=1e-4)
    assert found.shape[1] == 9 and (found[:, 5:] == -1e4).all()


@torch.no_grad()
def test_what_was_learned_before_stays_bit_for_bit(runs):
    before, after = (toy.model for toy in runs)
    (x, _) = contract.images_of(runs[0])
    assert torch.equal(before(x)[:, :3], after(x)[:, :3])
    for name, value in before.net.state_dict().items():
        assert torch.equal(value, after.columns[0].state_dict()[name]), name  # also what BatchNorm keeps
    assert not any(p.requires_grad for p in (*after.columns.parameters(), *after.heads[0].parameters()))


def test_a_step_trains_the_newest_column_among_its_own_classes():
    with contract.toys():
        made = contract.run("pnn", stop_after=1)
        made.dataset.get_data_loaders()
        model = made.model
        model.meta_begin_task(made.dataset)
        assert len(model.columns) == 2 and len(model.scales[1]) == 2
        assert not torch.equal(model.columns[1].conv.weight, model.net.conv.weight), "a new column starts anew"
        model.train()
        assert model.net.training and not any(part.training for part in model.columns.modules())
        inputs, labels, plain = next(iter(made.dataset.train_loader))[:3]
        labels = labels.long()
        model.eval()
        with torch.no_grad():
            wanted = cross_entropy(model(inputs)[:, 5:9], labels - 5)
        trained = {id(p) for group in model.opt.param_groups for p in group["params"]}
        newest = (model.net, model.heads[2], model.reduce[1], model.expand[1])
        assert trained == {id(p) for part in newest for p in part.parameters()} | {id(model.scales[1])}
        before = model.scales[1].detach().clone()
        assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(float(wanted), rel=1e-4)
        assert not torch.equal(model.scales[1], before)


def test_old_columns_are_what_is_kept(runs):
    model = runs[1].model
    assert model.stored_bytes()["columns"] == sum(4 * p.numel() for p in model.columns.parameters()) + sum(
        b.numel() * b.element_size() for b in model.columns.buffers()
    )
