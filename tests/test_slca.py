"""SLCA: rates of network and heads, what a task trains, samples and leveled logits by hand."""

import pytest
import torch

from tests import contract
from tests.test_prompt_baselines import begun


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def test_a_task_trains_its_head_quickly_and_the_network_slowly():
    toy = begun("slca", tasks=2, slow_lr=0.01, lr=0.1, optim_mom=0.0)
    model = toy.model
    assert [g["lr"] for g in model.opt.param_groups] == pytest.approx([0.001, 0.1])
    old = model.heads[0].weight.clone()
    net = {k: p.detach().clone() for k, p in model.net.named_parameters()}
    batch = next(iter(toy.dataset.train_loader))
    images, labels = batch[0], batch[1]
    logits = model.heads[1](model.net(images, returnt="features"))
    wanted = torch.nn.functional.cross_entropy(logits, labels - 3)
    assert float(model.observe(*batch[:3])) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.equal(model.heads[0].weight, old) and not model.heads[0].weight.requires_grad
    step = (model.net.conv.weight - net["conv.weight"] + 0.001 * 5e-4 * net["conv.weight"]).detach()
    torch.testing.assert_close(step, -0.001 * model.net.conv.weight.grad, atol=1e-7, rtol=1e-3)


def test_samples_have_the_class_covariance_and_a_mean_that_grows_with_age():
    toy = begun("slca", tasks=2, ca_samples=20000)
    model = toy.model
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=draw) / 5
    features = {c: 1.0 + c + torch.randn(200, 24, generator=draw) @ mix for c in (3, 0, 4, 1, 2)}
    model.gaussians.rows, model.gaussians.row_class, model.gaussians.row_count = {}, [], []
    model.gaussians.fit({c: features[c] for c in (3, 4)})
    model.gaussians.fit({c: features[c] for c in (0, 1, 2)})  # stored in another order than the classes'
    model.task_of[:5] = torch.tensor([0, 0, 0, 1, 1])
    torch.manual_seed(0)
    x, y = model.samples()
    for c, factor in ((1, 0.95), (4, 1.0)):  # 0.9 + 0.1 (1 / 2), 0.9 + 0.1 (2 / 2)
        own = x[y == c]
        torch.testing.assert_close(own.mean(0), factor * features[c].mean(0), atol=0.05, rtol=0)
        torch.testing.assert_close(own.T.cov(), features[c].T.cov(), atol=0.12, rtol=0)


def test_leveled_logits_do_not_depend_on_their_size():
    model = contract.build("slca", ca_with_logit_norm=0.1).model
    parts = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0, 1.0]])]
    found = model.leveled(parts)
    torch.testing.assert_close(found, torch.cat(parts, 1) / (0.1 * 3.0))  # norms 5 and 1
    torch.testing.assert_close(model.leveled([7 * part for part in parts]), found)
    plain = contract.build("slca", ca_with_logit_norm=0).model
    assert torch.equal(plain.leveled(parts), torch.cat(parts, 1))


def test_alignment_changes_copies_and_the_next_task_goes_on_from_the_heads():
    toy = begun("slca", tasks=2)
    model = toy.model
    before = [head.weight.clone() for head in model.heads]
    model.meta_end_task(toy.dataset)
    assert all(torch.equal(head.weight, old) for head, old in zip(model.heads, before, strict=True))
    assert all(not torch.equal(head.weight, old) for head, old in zip(model.aligned, before, strict=True))
    images = contract.images_of(toy)[0][:2]
    model.eval()
    features = model.net(images, returnt="features")
    torch.testing.assert_close(model(images), torch.cat([head(features) for head in model.aligned], 1))
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    assert model.aligned is None and len(model.heads) == 3


def test_the_first_task_is_not_aligned_and_statistics_are_of_eval_mode():
    toy = begun("slca")
    model = toy.model
    model.train()
    mean = model.net.norm.running_mean.clone()
    model.meta_end_task(toy.dataset)
    assert model.aligned is None and torch.equal(model.net.norm.running_mean, mean) and model.net.training
    assert model.gaussians.classes == [0, 1, 2]
