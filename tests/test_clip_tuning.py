"""Steps, weights and scores shared by methods that fine-tune the whole CLIP, against slow forms."""

import pytest
import torch
from torch.nn.functional import normalize
from torchvision import transforms as T

from backbone.lora import adapted, add_lora, fold_lora
from models.utils.clip_tuning import normalization_of, rates
from tests import contract
from tests.clip_toys import PLAIN, begun, toy
from utils.errors import UserError
from utils.schedulers import warmup_cosine
from utils.weights import add_to_mean, interpolate, weights_of


@pytest.mark.parametrize("init", [0, 1])
def test_the_running_mean_is_the_mean_of_its_snapshots(init):
    made = toy("finetune-clip", avg_freq=3, we_include_init=init)
    made.dataset.get_data_loaders()
    made.model.meta_begin_task(made.dataset)
    kept = [weights_of(made.model.net)] if init else []
    for number, (inputs, labels, not_aug) in enumerate(made.dataset.train_loader, 1):
        made.model.meta_observe(inputs, labels.long(), not_aug)
        if number % 3 == 0 or (init and number == 1):
            kept.append(weights_of(made.model.net))
    assert len(kept) == (4 if init else 2)
    made.model.meta_end_task(made.dataset)
    for name, p in made.model.net.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.detach(), torch.stack([w[name] for w in kept]).mean(0), atol=1e-6, rtol=1e-5)


def test_line_and_mean_of_weights():
    net = torch.nn.Linear(2, 2)
    first = weights_of(net)
    mean, count = weights_of(net), 1
    for value in (1.0, 3.0):
        with torch.no_grad():
            net.weight.fill_(value), net.bias.fill_(value)
        add_to_mean(mean, net, count)
        count += 1
    torch.testing.assert_close(mean["weight"], (first["weight"] + 4) / 3)
    interpolate(net, first, 1.0)
    assert torch.equal(net.weight, torch.full((2, 2), 3.0))
    interpolate(net, first, 0.0)
    assert torch.equal(net.weight, first["weight"])


def test_adapters_start_as_the_network_and_fold_into_it():
    net = toy().model.net
    x = torch.rand(2, 3, net.resolution, net.resolution)
    with torch.no_grad():
        before = net.encode_image(x)
        names = add_lora(net, 2, 4.0, torch.Generator().manual_seed(0))
        torch.testing.assert_close(net.encode_image(x), before, atol=1e-6, rtol=1e-5)
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.1)
        moved, sums = net.encode_image(x), {n: w.clone() for n, w in adapted(net, names).items()}
        assert (moved - before).abs().max() > 1e-3
        fold_lora(net, names)
        torch.testing.assert_close(net.encode_image(x), moved)
    assert all(torch.equal(dict(net.named_parameters())[n], w) for n, w in sums.items())
    with pytest.raises(UserError, match="does not have any"):
        add_lora(torch.nn.Linear(2, 2), 1, 1.0)


def test_the_rate_rises_and_falls_with_the_step():
    model, inputs, labels, _ = begun(0, warmup=0.5, lr=0.01, **PLAIN)
    rates = []
    for step in range(model.task_steps):
        model._task_iteration = step
        model.set_rate()
        rates.append(model.opt.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01 * warmup_cosine(s + 1, 3, 7) for s in range(6)])
    assert rates[2] == pytest.approx(0.01) and 0 < rates[-1] < rates[3] < 0.01
    assert [warmup_cosine(s, 2, 4) for s in (0, 1, 2, 3, 4)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_augmented_images_reach_clip_in_its_own_normalisation():
    model = toy(augment=1).model
    images = torch.rand(2, 3, 8, 8)
    wanted = model.net.normalize_images(images)
    crop = T.Compose([T.RandomCrop(8), T.ToTensor(), T.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))])
    model.pixel_statistics = normalization_of(crop)
    assert model.pixel_statistics == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)) and normalization_of(T.ToTensor()) is None
    torch.testing.assert_close(
        model.clip_input(T.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(images)), wanted, atol=1e-5, rtol=1e-4
    )
    model.pixel_statistics = None
    assert torch.equal(model.clip_input(images), wanted)
    model.args.augment = False
    assert model.clip_input(images) is images


@pytest.mark.parametrize("space, columns", [("domain", 2), ("seen", 5), ("all", 9)])
def test_label_space_is_what_the_softmax_is_over(space, columns):
    model, inputs, labels, _ = begun(1, label_space=space, text_bank="current")
    first, last = model.label_range()
    assert last - first == columns
    seen = []
    model.task_loss = lambda images, names, y: seen.append((names.shape[0], y)) or (images.sum() + names.sum())
    model.step(inputs, labels)
    assert seen[0][0] == columns and torch.equal(seen[0][1] + first, labels)


def test_scores_of_future_names_use_the_tuned_towers():
    made = toy(trained=True, eval_future=1)
    assert set(made.summary) >= {"ci_transfer", "seen_all"}
    model, inputs = made.model, contract.images_of(made)[0]
    with torch.no_grad():
        slow = (
            model.net.logit_scale
            * normalize(model.net.encode_image(inputs), dim=1)
            @ model.text_features(model.dataset.get_class_names(), [["a photo of a {}.", "a picture of a {}."]] * 9).T
        )
        torch.testing.assert_close(model.future_forward(inputs), slow, atol=1e-4, rtol=1e-4)


def test_a_domain_has_a_rate_of_its_own():
    made = toy(**PLAIN)
    made.model.dataset.domains = ("paintings", "maps", "photos")
    made.model.args.domain_lr = rates("maps=0.5, photos=2")
    found = []
    for task in range(3):
        made.model._current_task = task
        found.append(made.model.rate())
    assert found == [made.model.args.lr, 0.5, 2.0]
    with pytest.raises(UserError, match="names maps; the domains of toy-class-il: none"):
        toy(domain_lr="maps=0.5", **PLAIN)
    with pytest.raises(UserError, match="is not a list of rates"):
        toy(domain_lr="maps", **PLAIN)


def test_names_are_encoded_in_pieces_at_the_same_value_and_less_memory():
    found = {}
    for chunk in (0, 2):
        model, inputs, labels, _ = begun(0, name_chunk=chunk, **PLAIN | {"label_space": "all", "optimizer": "sgd"})
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):  # noqa: B023
            names = model.name_rows(model.net, 0, 9)
        model.step(inputs, labels)
        found[chunk] = sum(kept), names.detach(), [p.detach().clone() for p in model.get_parameters()]
    torch.testing.assert_close(found[0][1], found[2][1])
    for whole, pieces in zip(found[0][2], found[2][2], strict=True):
        torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=1e-5)
    assert found[2][0] < 0.2 * found[0][0], "the activations of no piece are kept"


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_cross_entropy_by_loops(smoothing):
    model, *_ = begun(0, label_smoothing=smoothing, **PLAIN)
    draw = torch.Generator().manual_seed(0)
    images, names = (normalize(torch.randn(n, 5, generator=draw), dim=1) for n in (4, 3))
    labels, total = torch.tensor([2, 0, 1, 1]), 0.0
    for image, label in zip(images, labels.tolist(), strict=True):
        z = [float(model.scale) * float(image @ name) for name in names]
        shares = torch.tensor(z).double().log_softmax(0).tolist()
        wanted = [(1 - smoothing) * (k == label) + smoothing / 3 for k in range(3)]
        total -= sum(w * s for w, s in zip(wanted, shares, strict=True)) / 4
    assert float(model.task_loss(images, names, labels)) == pytest.approx(total, rel=1e-4)


def test_seen_names_alone_are_scored():
    model, inputs, *_ = begun(1, **PLAIN)
    x = model.clip_input(inputs)
    seen, every = model.eval()(x), model.future_forward(x)
    assert seen.shape[1] == 5 and every.shape[1] == 9
    torch.testing.assert_close(seen, every[:, :5])


def test_a_quarter_of_the_way():
    net, anchor = torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": torch.ones(2)}
    with torch.no_grad():
        net.weight.fill_(4.0), net.bias.fill_(5.0)
    interpolate(net, anchor, 0.25)
    assert torch.equal(net.weight, torch.full((2, 2), 1.0)) and torch.equal(net.bias, torch.full((2,), 2.0))
