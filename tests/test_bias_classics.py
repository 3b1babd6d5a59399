"""LUCIR and BiC, which correct the bias to new classes, on small networks against hand computation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbone.cosine import CosineLinear
from models.bic import Bic, fit_correction, rescale
from models.lucir import Lucir, margin_ranking
from tests.classic_toys import FLAGS, begin, build, some, train
from tests.toys import ToyStream, toy_args
from utils.errors import UserError

# LUCIR


def test_margin_ranking_by_hand():
    cosines = torch.tensor([[0.9, 0.1, 0.7, 0.2, 0.5], [0.3, 0.4, 0.1, 0.0, 0.2], [0.0, 0.0, 0.9, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])  # the third is of a new class: not counted
    # first: .5 - .9 + .7 and .5 - .9 + .5; second: .5 - .4 + .2 and .5 - .4 + .1
    assert float(margin_ranking(cosines, labels, 2, 2, 0.5)) == pytest.approx((0.3 + 0.1 + 0.3 + 0.2) / 2)
    assert float(margin_ranking(cosines, labels, 2, 9, 0.5)) == pytest.approx((0.3 + 0.1 + 0 + 0.3 + 0.2 + 0.1) / 2)
    assert float(margin_ranking(cosines[2:], labels[2:], 2, 2, 0.5)) == 0


def test_lucir_loss_by_hand():
    model = build(Lucir)
    train(model), begin(model)
    assert model.lamda == pytest.approx(5 * (3 / 1) ** 0.5)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    assert {0, 1, 2} & set(labels.tolist()), "exemplars are replayed"
    with torch.no_grad():
        f = model.net(inputs, returnt="features")
        w = model.net.classifier.weight[:4]
        cosines = torch.tensor([[float(a @ c / a.norm() / c.norm()) for c in w] for a in f])
    loss = F.cross_entropy(
        model.net.classifier.scale.detach() * cosines, labels
    )  # the features have not moved: no distillation
    margins = [
        max(0.0, 0.5 - float(row[y]) + float(row[3])) for row, y in zip(cosines, labels.tolist(), strict=True) if y < 3
    ]
    wanted = float(loss) + sum(margins) / len(margins)
    before = model.net.classifier.weight.detach().clone()
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(wanted, rel=1e-4)
    assert torch.equal(model.net.classifier.weight[:3], before[:3])
    assert not torch.equal(model.net.classifier.weight[3], before[3])


def test_lucir_holds_features_in_direction():
    model = build(Lucir, norm=True, lamda_mr=0.0)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    without = copy.deepcopy(model)
    without.lamda = 0.0
    away = model.meta_observe(inputs, labels, plain) - without.meta_observe(inputs, labels, plain)
    model = build(Lucir, norm=True, lamda_mr=0.0)
    train(model), begin(model)
    f, old = model.net(inputs, returnt="features"), model.old_net(inputs, returnt="features")
    assert float(away) == pytest.approx(
        float((model.lamda * (1 - F.cosine_similarity(f, old)).mean()).detach()), rel=1e-3
    )
    assert float(away) > 0


def test_imprinted_rows():
    model = build(Lucir)
    train(model)
    old = model.net.classifier.weight[:3].detach().clone()
    begin(model)
    split = model.dataset.train_loader.dataset.splits[0]
    f = F.normalize(split.plain(torch.arange(len(split)))[0].flatten(1), dim=1).mean(0)
    row = model.net.classifier.weight[3].detach()
    torch.testing.assert_close(row.norm(), old.norm(dim=1).mean())
    torch.testing.assert_close(F.normalize(row, dim=0), F.normalize(f, dim=0))


def test_lucir_weight_of_the_task_before():
    model = build(Lucir, mammoth_compat=True)
    train(model), begin(model)
    assert model.lamda == 0  # no old class before the first task
    for data in model.dataset.train_loader.epoch(0):
        model.meta_observe(*data[:3], epoch=0)
    model.meta_end_task(model.dataset), begin(model)
    assert model.lamda == pytest.approx(5 * 3**0.5)


def test_lucir_needs_a_linear_classifier():
    args = toy_args(**FLAGS)
    with pytest.raises(UserError, match="linear"):
        Lucir(nn.Sequential(nn.Flatten(), nn.Linear(6, 6)), F.cross_entropy, args, None, ToyStream(args))


def test_cosine_classifier():
    head, x = CosineLinear(3, 2), torch.randn(4, 3)
    wanted = torch.stack([F.cosine_similarity(x, row[None]) for row in head.weight], dim=1)
    torch.testing.assert_close(head(x), wanted)
    torch.testing.assert_close(head(7 * x), wanted)


# BiC


def test_bic_loss_by_hand():
    model = build(Bic)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    with torch.no_grad():  # away from the old net: the distillation is not 0
        model.net.classifier.bias += torch.tensor([2.0, -1.0, 0.5, 1.0, 0.0, 0.0])
    z, old = model.net(inputs)[:, :4], model.old_net(inputs)[:, :3]
    p, q = (old / 2).softmax(1), (z[:, :3] / 2).softmax(1)
    wanted = 0.25 * F.cross_entropy(z, labels) + 0.75 * 4 * (p * (p / q).log()).sum(1).mean()
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_bic_compat_weight_shrinks():
    model = build(Bic, mammoth_compat=True)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    z = model.net(inputs)[:, :4]  # equal to the old net: no distillation
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(
        0.5 * float(F.cross_entropy(z, labels).detach()), rel=1e-5
    )


def test_bic_holds_out_as_many_of_every_class_and_trains_on_the_rest():
    model = build(Bic, valset_split=0.4)
    train(model)
    stored = model.buffer.serialize()
    begin(model)
    images, labels = model.held_out
    assert torch.bincount(labels).tolist() == [2, 2, 2, 2]  # 6 exemplars of each old class
    seen = model.dataset.train_loader.dataset.plain(torch.arange(len(model.dataset.train_loader.dataset)))
    assert len(seen[1]) + len(labels) == 10 + len(stored["labels"])
    whole = [tuple(v) for v in torch.cat([seen[0], images]).flatten(1).mul(255).round().int().tolist()]
    new = model.dataset.samples(True)
    wanted = torch.cat([stored["examples"], new.data[new.targets == 3]]).flatten(1).int().tolist()
    assert sorted(whole) == sorted(map(tuple, wanted))


def test_bic_distils_corrected_logits():
    model, plain = build(Bic), build(Bic, distill_after_bic=False)
    for m in (model, plain):
        train(m), train(m)
        m.correction.copy_(torch.tensor([2.0, -1.0]))
        begin(m)
    x = some(model)[0]
    z = model.net(x)
    assert torch.equal(model.correct(z), torch.cat([z[:, :3], 2 * z[:, 3:4] - 1, z[:, 4:]], dim=1))
    batch = next(model.dataset.train_loader.epoch(0))[:3]
    assert float(plain.meta_observe(*batch)) < float(
        model.meta_observe(*batch)
    )  # its own net's plain logits: equal to z


def test_bias_fit_recovers_a_distortion():
    draw = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(4000, 6, generator=draw)
    labels = torch.multinomial(z.softmax(1), 1, generator=draw).flatten()
    distorted = rescale(z, 4, 6, torch.tensor([1 / 0.6, 0.9 / 0.6]))  # undone by a = 0.6, b = -0.9
    found = fit_correction(distorted, labels, 4, 600, 0.01)
    torch.testing.assert_close(found, torch.tensor([0.6, -0.9]), atol=0.1, rtol=0)
    assert torch.equal(fit_correction(z, labels, 4, 0, 0.01), torch.tensor([1.0, 0.0]))


def test_bic_answers_are_corrected_after_a_task_and_plain_within_one():
    model = build(Bic, bic_lr=0.1)
    train(model)
    x = some(model)[0]
    assert torch.equal(model(x), model.net(x))
    train(model)
    z = model.net(x)
    a, b = model.correction
    assert a != 1 and torch.equal(model(x)[:, 3], a * z[:, 3] + b) and torch.equal(model(x)[:, :3], z[:, :3])
    begin(model)
    assert torch.equal(model(x), model.net(x))


def test_bic_needs_two_exemplars_of_each_old_class():
    with pytest.raises(UserError, match="at least 8"):
        build(Bic, buffer_size=7)


def test_lucir_scale_is_part_of_the_loss():
    model = build(Lucir)
    begin(model)
    with torch.no_grad():
        model.net.classifier.scale.fill_(3.0)
    x, y = some(model)
    rows = model.net.classifier.weight.detach()[:3]
    cosines = torch.tensor([[float(F.cosine_similarity(f, w, dim=0)) for w in rows] for f in x.flatten(1)])
    wanted = float(F.cross_entropy(3 * cosines, y))
    assert float(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-5)


def test_lucir_tunes_the_classifier_on_exemplars():
    """Three full-batch steps on the balanced memory, over the seen classes; the rest of the network stays."""
    model = build(Lucir, fitting_epochs=3, lr_finetune=0.05)
    train(model), begin(model)
    model.end_task, tune = type(model).end_task.__get__(model), model.tune
    heads = []
    model.tune = lambda: (heads.append(copy.deepcopy(model.net.classifier)), tune())
    model.meta_end_task(model.dataset)
    (head,), (images, labels) = heads, model.buffer.get_all_data()
    for _ in range(3):
        f = F.normalize(images.flatten(1), dim=1)
        z = head.scale * f @ F.normalize(head.weight, dim=1).T
        g = torch.autograd.grad(F.cross_entropy(z[:, :4], labels), list(head.parameters()))
        with torch.no_grad():
            for p, change in zip(head.parameters(), g, strict=True):
                p -= 0.05 * change
    for p, wanted in zip(model.net.classifier.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, atol=1e-5, rtol=1e-4)


def test_bic_fits_its_correction_on_the_seen_classes():
    model = build(Bic)
    train(model), begin(model)
    with torch.no_grad():
        model.net.classifier.bias[4:] += 9.0  # classes to come, which would win
    images, labels = model.held_out
    z = model.net(images).detach()
    wanted = fit_correction(z[:, :4], labels, 3, model.args.bic_epochs, model.args.bic_lr)
    model.meta_end_task(model.dataset)
    torch.testing.assert_close(model.correction, wanted)
