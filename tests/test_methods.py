"""Methods on a linear network against numpy in double precision."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms as T

from models.der import Der
from models.derpp import Derpp
from models.er import Er
from models.icarl import ICarl
from models.joint import Joint
from models.sgd import Sgd
from tests.toys import Linear, ToyDomains, ToyStream, toy_args

FLIP = T.Compose([T.ToPILImage(), T.Compose([T.RandomHorizontalFlip(1.0), T.ToTensor()])])


class Three(ToyStream):
    """Three classes; tests hand over their own batches."""

    NAME = "three"
    N_TASKS = 2
    N_CLASSES_PER_TASK = [2, 1]


def build(method, stream_class=Three, transform=None, norm=False, begin=True, **changes):
    args = toy_args(**changes)
    stream = stream_class(args)
    model = method(Linear(6, stream.N_CLASSES, norm), F.cross_entropy, args, transform, stream)
    if begin:
        model.meta_begin_task(stream)
    return model


def batch(seed: int, n: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, 3, generator=draw), torch.randint(0, classes, (n,), generator=draw)


def observe(model, seed: int, n: int = 5) -> float:
    x, y = batch(seed, n, model.N_CLASSES)
    return float(model.meta_observe(x, y, x))


def theta(model) -> tuple[np.ndarray, np.ndarray]:
    layer = model.net.classifier
    return layer.weight.detach().double().numpy().copy(), layer.bias.detach().double().numpy().copy()


def logits(params, x) -> np.ndarray:
    weight, bias = params
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1) @ weight.T + bias


def softmax(z) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(params, x, y) -> tuple[float, np.ndarray]:
    """Mean loss and its gradient by the logits (B, C)."""
    p, rows = softmax(logits(params, x)), np.arange(len(y))
    change = p.copy()
    change[rows, y] -= 1
    return -np.log(p[rows, y]).mean(), change / len(y)


def step(params, lr: float, *terms) -> tuple[np.ndarray, np.ndarray]:
    """theta - lr g; each term is (inputs, gradient by the logits)."""
    weight, bias = params[0].copy(), params[1].copy()
    for x, change in terms:
        weight -= lr * change.T @ np.asarray(x, dtype=np.float64).reshape(len(x), -1)
        bias -= lr * change.sum(0)
    return weight, bias


def close(params, others, tolerance=1e-5) -> bool:
    return all(np.allclose(a, b, atol=tolerance) for a, b in zip(params, others, strict=True))


def test_sgd_is_theta_minus_lr_times_gradient():
    model, (x, y) = build(Sgd, lr=0.3), batch(0)
    before = theta(model)
    for _ in range(2):  # the second step starts from fresh gradients
        value, change = cross_entropy(before, x, y)
        assert observe(model, 0) == pytest.approx(value, rel=1e-5)
        before = step(before, 0.3, (x, change))
        assert close(theta(model), before)


@pytest.mark.parametrize("method", [Er, Derpp])
def test_an_empty_memory_means_sgd_bit_for_bit(method):
    plain, replaying = build(Sgd), build(method)
    assert observe(plain, 0) == observe(replaying, 0)
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), replaying.net.parameters(), strict=True))
    observe(plain, 1), observe(replaying, 1)
    assert not torch.equal(plain.net.classifier.weight, replaying.net.classifier.weight)  # now there is a memory


def test_er_trains_on_stream_and_memory_as_one_batch():
    model, (x, y) = build(Er, lr=0.2), batch(1)
    observe(model, 0)
    before, memory = theta(model), copy.deepcopy(model.buffer)
    np.random.seed(3)
    old_x, old_y = memory.get_data(4)
    value, change = cross_entropy(before, torch.cat((x, old_x)), torch.cat((y, old_y)).numpy())
    np.random.seed(3)
    assert observe(model, 1) == pytest.approx(value, rel=1e-5)
    assert close(theta(model), step(before, 0.2, (torch.cat((x, old_x)), change)))
    assert len(old_x) == 4 and model.buffer.num_seen_examples == 10  # replayed samples are not stored again
    stored_x, stored_y = model.buffer.get_all_data()
    assert torch.equal(stored_x, torch.cat((batch(0)[0], x))) and torch.equal(stored_y, torch.cat((batch(0)[1], y)))


@pytest.mark.parametrize("method, draws", [(Er, 1), (Der, 1), (Derpp, 2)])
def test_memory_holds_plain_images_and_replays_augmented_ones(method, draws):
    model, seen = build(method, transform=FLIP, minibatch_size=99), []
    (x, y), (x2, y2) = batch(0), batch(1)
    model.meta_observe(x + 5, y, x)  # what is trained on differs from what is stored
    assert torch.equal(model.buffer.get_all_data()[0], x)
    model.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.meta_observe(x2, y2, x2)
    replayed = torch.cat(seen)[5:]
    assert len(replayed) == 5 * draws
    flipped = {tuple(image.flatten().tolist()) for image in x.flip(-1)}
    assert {tuple(image.flatten().tolist()) for image in replayed} == flipped


def derpp_by_hand(model, x, y, alpha: float, beta: float, lr: float):
    """Loss and parameters after the step that the model is about to make under numpy seed 9."""
    params, memory = theta(model), copy.deepcopy(model.buffer)
    np.random.seed(9)
    (x1, _, z), (x2, y2, _) = memory.get_data(4), memory.get_data(4)
    assert not torch.equal(x1, x2)  # two draws
    difference = logits(params, x1) - z.double().numpy()
    value, change = cross_entropy(params, x, y.numpy())
    replay_value, replay_change = cross_entropy(params, x2, y2.numpy())
    loss = value + alpha * (difference**2).sum() / difference.size + beta * replay_value
    terms = (x, change), (x1, alpha * 2 * difference / difference.size), (x2, beta * replay_change)
    return loss, step(params, lr, *terms)


@pytest.mark.parametrize("single_forward", [False, True])
@pytest.mark.parametrize("alpha, beta", [(0.5, 0.7), (0.0, 1.0), (2.0, 0.0)])
def test_derpp_loss_and_step_by_hand(alpha, beta, single_forward):
    model = build(Derpp, alpha=alpha, beta=beta, lr=0.4, single_forward=single_forward)
    for seed in (0, 1, 2):
        observe(model, seed)
    x, y = batch(5)
    loss, after = derpp_by_hand(model, x, y, alpha, beta, lr=0.4)
    np.random.seed(9)
    assert observe(model, 5) == pytest.approx(loss, rel=1e-5)
    assert close(theta(model), after)


def test_derpp_stores_the_logits_of_before_the_step():
    model, (x, y) = build(Derpp, lr=0.5), batch(0)
    before = theta(model)
    observe(model, 0)
    assert np.allclose(model.buffer.logits[:5], logits(before, x), atol=1e-5)
    assert not np.allclose(model.buffer.logits[:5], logits(theta(model), x), atol=1e-3)
    assert not model.buffer.logits.requires_grad and torch.equal(model.buffer.labels[:5], y)


def test_derpp_logit_term_is_zero_while_the_network_is_unchanged():
    model = build(Derpp, alpha=100.0, beta=0.0, lr=0.0)
    observe(model, 0)
    value, _ = cross_entropy(theta(model), *batch(1))
    assert observe(model, 1) == pytest.approx(value, rel=1e-5)
    with torch.no_grad():
        model.net.classifier.bias += 0.1  # every logit moves by 0.1: the mean square is 0.01
    value, _ = cross_entropy(theta(model), *batch(2))
    assert observe(model, 2) == pytest.approx(value + 100 * 0.01, rel=1e-4)


def losses_and_gradients(norm: bool) -> list[tuple[float, torch.Tensor]]:
    """One step from the same state, first with three forwards, then with one."""
    found = []
    for single_forward in (False, True):
        model = build(Derpp, norm=norm, single_forward=single_forward, lr=0.1)
        np.random.seed(0)
        observe(model, 0), observe(model, 1)
        before = torch.nn.utils.parameters_to_vector(model.net.parameters()).detach()
        loss = observe(model, 2)
        after = torch.nn.utils.parameters_to_vector(model.net.parameters()).detach()
        found.append((loss, (before - after) / 0.1, model.image_forwards))
    return found


def test_single_forward_is_the_same_without_batchnorm_and_another_method_with_it():
    (loss, gradient, images), (one_loss, one_gradient, one_images) = losses_and_gradients(norm=False)
    assert one_loss == pytest.approx(loss, abs=1e-6) and torch.allclose(gradient, one_gradient, atol=2e-6)
    assert images == one_images == 5 + (5 + 4 + 4) * 2
    (loss, gradient, _), (one_loss, one_gradient, _) = losses_and_gradients(norm=True)
    assert abs(loss - one_loss) > 1e-3 and not torch.allclose(gradient, one_gradient, atol=1e-3)


# iCaRL


def sigmoid(z) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def bce(params, targets, x, classes: int) -> tuple[float, np.ndarray]:
    """Mean over batch and the first classes, and its gradient by all logits."""
    p = sigmoid(logits(params, x))[:, :classes]
    change = np.zeros((len(x), len(params[1])))
    change[:, :classes] = (p - targets) / targets.size
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(), change


def icarl_at(task: int, **changes) -> ICarl:
    """iCaRL on the toy stream (3, 1, 2 classes), tasks before `task` gone through without a step."""
    model = build(ICarl, ToyStream, begin=False, **changes)
    for t in range(task + 1):
        model.dataset.get_data_loaders()
        model.meta_begin_task(model.dataset)
        if t < task:
            model.meta_end_task(model.dataset)
    return model


@pytest.mark.parametrize("opt_wd", [0.0, 0.05])
def test_icarl_first_task_by_hand(opt_wd):
    model, lr = icarl_at(0, opt_wd=opt_wd, lr=0.5), 0.5
    x, y = batch(0, classes=3)
    params = theta(model)
    value, change = bce(params, np.eye(3)[y], x, 3)
    value += opt_wd * sum((p**2).sum() for p in params)
    assert float(model.meta_observe(x, y, x)) == pytest.approx(value, rel=1e-5)
    decayed = tuple(p - lr * 2 * opt_wd * p for p in params)
    moved = step(params, lr, (x, change))
    assert close(theta(model), tuple(d + m - p for d, m, p in zip(decayed, moved, params, strict=True)))
    assert np.array_equal(theta(model)[0][3:], decayed[0][3:].astype(np.float32)) or opt_wd  # unseen rows: no loss


def test_icarl_old_classes_keep_the_answers_of_the_old_network():
    """Task 1: targets of classes 0-2 are the old sigmoids, also where the label says otherwise; class 3 is one-hot."""
    model = icarl_at(1, lr=0.5)
    old = theta(model)
    x, y = batch(0, 6, classes=4)
    y[0], y[1] = 3, 0
    for _ in range(2):  # in the second step the network has moved away from the old one
        params = theta(model)
        targets = np.concatenate((sigmoid(logits(old, x))[:, :3], (y[:, None] == 3).double().numpy()), axis=1)
        assert np.allclose(model.targets(x, y), targets, atol=1e-6)
        value, change = bce(params, targets, x, 4)
        assert float(model.meta_observe(x, y, x)) == pytest.approx(value, rel=1e-5)
        assert close(theta(model), step(params, 0.5, (x, change)))
    with torch.no_grad():  # its own answers give the old rows no gradient: another cause moves them
        model.net.classifier.bias += 1
    assert np.allclose(model.targets(x, y)[:, :3], sigmoid(logits(old, x))[:, :3], atol=1e-6)
    assert np.array_equal(model.old_net.classifier.weight.double().numpy(), old[0]) and not model.old_net.training
    assert not any(p.requires_grad for p in model.old_net.parameters())


def test_icarl_nearest_mean_is_the_largest_cosine():
    model = icarl_at(2)
    model.meta_end_task(model.dataset)
    model.eval()
    x = torch.rand(200, 1, 2, 3, generator=torch.Generator().manual_seed(3))
    kept, labels = model.buffer.get_all_data()
    unit = F.normalize(kept.flatten(1).double(), dim=1)
    means = torch.stack([unit[labels == c].mean(0) for c in range(6)])
    cosine = F.cosine_similarity(x.flatten(1).double()[:, None], means[None], dim=2)  # (B, C)
    scores = model(x)
    assert scores.shape == (200, 6) and torch.equal(scores.argmax(1), cosine.argmax(1))
    assert torch.allclose(scores.double(), 2 * cosine - 2, atol=1e-5)  # -|f - m|^2 of unit vectors
    single = torch.cat([model(image[None]) for image in x[:40]])
    assert torch.allclose(single, scores[:40], atol=1e-5)


def test_icarl_means_follow_the_network():
    """Evaluated inside a task, trained one step, evaluated again: the means are those of the new features."""
    model = icarl_at(0, lr=5.0)
    model.net.norm = torch.nn.Linear(6, 6)
    model.opt = model.get_optimizer()
    x, y = batch(0, classes=3)
    before = model.eval()(x)
    assert torch.equal(before, model(x))
    model.train().meta_observe(x, y, x)
    samples, own = model.dataset.samples(True), model.net.eval().norm
    scores = model.eval()(x)
    for label in range(3):
        images = samples.data[samples.targets == label].float() / 255
        mean = F.normalize(F.normalize(own(images.flatten(1)), dim=1).mean(0), dim=0)
        expected = -(F.normalize(own(x.flatten(1)), dim=1) - mean).square().sum(1)
        assert torch.allclose(scores[:, label], expected, atol=1e-5)
    assert not torch.allclose(scores, before, atol=1e-3)


def test_icarl_with_fewer_places_than_classes():
    """An old class that got no place is infinitely far: never predicted, and no NaN in batches of any size."""
    model = icarl_at(1, buffer_size=2)
    for n in (1, 20, 60):
        scores = model.eval()(torch.rand(n, 1, 2, 3))
        assert torch.isneginf(scores[:, 2]).all() and torch.isfinite(scores[:, [0, 1, 3]]).all()


def test_icarl_copies_the_network_alone():
    """The old network is a network: it must not take the data along with it."""

    class NoCopy(ToyStream):
        def __deepcopy__(self, memo):
            raise AssertionError("copying the network copied the data")

    model = build(ICarl, NoCopy)
    model.dataset.get_data_loaders()
    model.meta_end_task(model.dataset)
    assert model.old_net is not model.net


# joint


def seen_by(model) -> list[tuple]:
    found: list[tuple] = []
    model.net.register_forward_pre_hook(lambda m, inputs: found.extend(tuple(i.flatten().tolist()) for i in inputs[0]))
    return found


def run_joint(stream_class, **changes) -> tuple[Joint, list[tuple]]:
    model = build(Joint, stream_class, begin=False, **changes)
    images = seen_by(model)
    for task in range(model.dataset.N_TASKS):
        model.dataset.get_data_loaders()
        model.meta_begin_task(model.dataset)
        model.meta_end_task(model.dataset)
        assert bool(images) == (task == model.dataset.N_TASKS - 1)  # only after the last task
    return model, images


def all_images(stream) -> list[tuple]:
    return [tuple((image.float() / 255).flatten().tolist()) for image in stream.samples(True).data]


def test_joint_sees_every_image_of_every_task_once_per_epoch():
    model, images = run_joint(ToyStream, n_epochs=2)
    expected = sorted(all_images(model.dataset))
    n = len(expected)
    assert sorted(images[:n]) == sorted(images[n:]) == expected and images[:n] != images[n:]


def test_joint_is_one_task_with_all_classes():
    """With the whole data in one batch the order is nothing: joint and sgd under --joint 1 make the same steps."""
    joint, images = run_joint(ToyStream, n_epochs=3, batch_size=1000)
    plain = build(Sgd, ToyStream, joint=True, batch_size=1000, begin=False)
    assert plain.dataset.N_TASKS == 1
    others = seen_by(plain)
    plain.dataset.get_data_loaders()
    plain.meta_begin_task(plain.dataset)
    for epoch in range(3):
        for x, y, plain_x in plain.dataset.train_loader.epoch(epoch):
            plain.meta_observe(x, y, plain_x)
    assert len(images) == len(others) and sorted(images) == sorted(others)
    assert close(theta(joint), theta(plain))
    assert not close(theta(joint), theta(build(Sgd, ToyStream)), 1e-2)  # it did learn something


def test_joint_serves_domains():
    model, images = run_joint(ToyDomains)
    assert sorted(images) == sorted(2 * all_images(model.dataset))  # both domains hold the same images here


def test_joint_leaves_out_images_without_a_label():
    """--label_perc 0.5 of tasks with 24, 10 and 23 images: 4, 5 and 5 of a class keep their label."""
    model, images = run_joint(ToyStream, label_perc=0.5, batch_size=3)
    labelled = [split.targets != -1 for split in (loader.dataset for loader in model.dataset.all_loaders()[0])]
    assert [int(mask.sum()) for mask in labelled] == [3 * 4, 5, 2 * 5]
    assert len(images) == 27 and all(torch.isfinite(p).all() for p in model.net.parameters())
