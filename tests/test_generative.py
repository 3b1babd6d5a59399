"""Feature generators: properties of each kind, and slow one-class forms as oracles of the stacked fits."""

import math

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.generative import GENERATORS
from utils.generative import base as class_generator
from utils.generative.base import class_streams
from utils.generative.diffusion import batch_order
from utils.generative.gaussians import log_joint
from utils.generative.vae import cosine_restarts

SMALL = {
    "vae": {"hidden_dim": 12, "latent_dim": 4, "n_iters": 6, "lr": 5e-3, "batch_size": 16},
    "mog": {"n_components": 3, "n_iters": 50},
    "gauss": {},
    "diffusion": {"hidden_dim": 10, "n_iters": 12, "batch_size": 16, "n_steps": 8},
    "full_gauss": {},
    "real": {},
}
KINDS = sorted(SMALL)
SIZES = {7: 33, 2: 54, 11: 17, 4: 16, 5: 3}  # at batch 16: a last batch of one row (7, 11), no ragged batch (4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(sizes=None, dim: int = 9, seed: int = 0) -> dict[int, torch.Tensor]:
    g, made = rng(seed), {}
    for c, n in (sizes or SIZES).items():
        mix = torch.randn(dim, dim, generator=g, dtype=torch.float64)
        made[c] = torch.randn(n, dim, generator=g, dtype=torch.float64) @ mix + c
    return made


def fitted(kind: str, data, seed: int = 1, **options):
    generator = GENERATORS[kind](**(SMALL[kind] | options))
    generator.fit(data, rng(seed))
    return generator


def row(generator, c: int) -> dict[str, torch.Tensor]:
    place = generator.row_class.index(c)
    found = {k: v[place] for k, v in generator.rows.items()}
    if generator.kind == "real":  # without the rows that pad a class to the size of the largest
        found["mean"] = found["mean"][: found["count"]]
    return found


def worst_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


# Laws of every kind.


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_fit_equals_one_class_at_a_time(kind):
    data = features()
    together = fitted(kind, data)
    for c in data:
        assert worst_gap(row(together, c), row(fitted(kind, {c: data[c]}), c)) < 1e-11


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_stack_size_does_not_change_the_fit(kind, monkeypatch):
    data = features()
    together = fitted(kind, data)
    monkeypatch.setitem(class_generator.FIT_BYTES, "cpu", 0)  # one class per stack
    alone = fitted(kind, data)
    assert worst_gap(together.rows, alone.rows) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_classes_does_not_matter(kind):
    data = features()
    a, b = fitted(kind, data), fitted(kind, dict(reversed(data.items())))
    assert worst_gap(a.rows, b.rows) == 0
    assert a.classes == sorted(SIZES)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_is_exact(kind):
    data = features()
    a = fitted(kind, data)
    a.fit(features({4: 20, 30: 8}, seed=5), rng(2), merge=True)
    b = GENERATORS[kind](**SMALL[kind])
    b.load_state(a.state())
    wanted = torch.tensor([30, 2, 4, 4])
    x = a.sample(wanted, 40, rng(3))
    assert x.shape == (4, 40, 9)
    assert torch.equal(x, b.sample(wanted, 40, rng(3)))
    assert not torch.equal(x, b.sample(wanted, 40, rng(4)))
    assert a.stored_bytes() == b.stored_bytes() == sum(8 * v.numel() for v in a.rows.values())
    other = GENERATORS["gauss" if kind != "gauss" else "mog"]()
    with pytest.raises(UserError, match="stored generators"):
        other.load_state(a.state())


@pytest.mark.parametrize("kind", KINDS)
def test_global_seed_is_used_without_a_generator(kind):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        generator = GENERATORS[kind](**SMALL[kind])
        generator.fit(features())
        draws.append(generator.sample(torch.tensor([2, 5]), 10))
    assert torch.equal(*draws)


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_classes_stay_finite(kind):
    constant = features({0: 40})[0]
    constant[:, 3] = 2.5
    same = features({0: 1})[0].repeat(20, 1)
    data = {0: same[:1] + 1, 1: constant, 2: same, 3: features({0: 2})[0]}
    x = fitted(kind, data).sample(torch.tensor([0, 1, 2, 3]), 50, rng())
    assert bool(torch.isfinite(x).all())
    assert torch.allclose(x[0], data[0].expand(50, -1))  # one feature: generated as itself
    assert torch.allclose(x[2], same[0].expand(50, -1))
    spread = 1e-12 if kind in ("vae", "gauss", "diffusion") else 0.2 * float(constant.std(0).max())
    assert float((x[1, :, 3] - 2.5).abs().max()) <= spread


@pytest.mark.parametrize("kind", KINDS)
def test_unusable_classes_are_named(kind):
    good = features({1: 8})[1]
    broken = good.clone()
    broken[3, 2] = math.nan
    for bad, words in (
        (good[:0], "class 42 has 0 features"),
        (broken, "class 42 has NaN"),
        (good[:, :4], "class 42 has"),
    ):
        with pytest.raises(UserError, match=words):
            GENERATORS[kind](**SMALL[kind]).fit({1: good, 42: bad})
    with pytest.raises(UserError, match="no class to fit"):
        GENERATORS[kind](**SMALL[kind]).fit({})
    generator = fitted(kind, {1: good})
    with pytest.raises(UserError, match="class 8 does not have a generator"):
        generator.sample(torch.tensor([1, 8]), 3)
    with pytest.raises(UserError, match="4 dimensions but the stored generators have 9"):
        generator.fit({2: good[:, :4]})


def test_refit_replaces_and_merge_mixes_by_counts():
    near, far = {0: torch.zeros(30, 2), 1: torch.ones(5, 2)}, {0: torch.full((10, 2), 9.0)}
    generator = fitted("gauss", near)
    generator.fit(far, rng(), merge=True)
    x = generator.sample(torch.tensor([1, 0]), 4000, rng(2))
    assert torch.equal(x[0], torch.ones(4000, 2))  # a class with one fit beside a merged one
    share = float((x[1] == 9).all(1).float().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert bool(((x[1] == 0) | (x[1] == 9)).all())
    generator.fit(far, rng())
    assert torch.equal(generator.sample(torch.tensor([0]), 10)[0], torch.full((10, 2), 9.0))
    assert len(generator.row_class) == 2


def test_progress_reaches_the_end_with_a_falling_loss():
    data = {c: x @ torch.ones(9, 9).double() for c, x in features({0: 32, 1: 20}).items()}  # rank 1: easy
    for kind, n_iters in (("vae", 100), ("diffusion", 150)):
        calls = []
        generator = GENERATORS[kind](**(SMALL[kind] | {"n_iters": n_iters}))
        generator.fit(data, rng(), progress=lambda *call: calls.append(call))  # noqa: B023
        assert calls[-1][0] == calls[-1][1]
        first, last = (sum(c[2] for c in part) for part in (calls[:10], calls[-10:]))
        assert last < 0.95 * first


# Statistics of the draws against those of the features.


def gaps(kind: str, data, n: int = 4000, **options) -> tuple[float, float, float]:
    """Largest over classes: error of the mean and of the std (units of std), relative error of the covariance."""
    x = fitted(kind, data, **options).sample(torch.tensor(sorted(data)), n, rng(8))
    worst = [0.0, 0.0, 0.0]
    for drawn, real in zip(x, (data[c] for c in sorted(data)), strict=True):
        std, cov = real.std(0), real.T.cov()
        mean_gap = (drawn.mean(0) - real.mean(0)) / std
        found = (mean_gap.abs().max(), (drawn.std(0) / std - 1).abs().max(), (drawn.T.cov() - cov).norm() / cov.norm())
        worst = [max(w, float(f)) for w, f in zip(worst, found, strict=True)]
    return tuple(worst)


# 6 standard errors of 4000 draws: 0.095 for a mean, 0.067 for a std
@pytest.mark.parametrize(("kind", "bound"), [("gauss", math.inf), ("mog", 0.9), ("full_gauss", 0.1)])
def test_moments_of_gaussian_draws(kind, bound):
    mean, std, cov = gaps(kind, features({0: 200, 3: 60}))
    assert mean < 0.095
    assert std < 0.067
    assert cov < bound


def test_moments_of_trained_draws():
    data = features({0: 200, 3: 60}, dim=6)
    vae = {"hidden_dim": 32, "latent_dim": 6, "n_iters": 120, "batch_size": 64}
    mean, std, cov = gaps("vae", data, n=1500, **vae)
    assert mean < 0.3 and std < 0.5 and cov < 0.75
    diffusion = {"hidden_dim": 32, "n_iters": 500, "batch_size": 32, "n_steps": 32}
    mean, std, cov = gaps("diffusion", data, n=1500, **diffusion, noise_quirk=False, renoise_quirk=False)
    assert mean < 0.5 and std < 0.5 and cov < 0.6


# Slow forms and hand-made cases.


def test_full_gaussian_factor_is_that_of_the_jittered_covariance():
    x = features({0: 40})[0]
    found = row(fitted("full_gauss", {0: x}), 0)
    low = torch.zeros(9, 9, dtype=torch.float64)
    low[tuple(torch.tril_indices(9, 9))] = found["factor"]
    expected = x.T.cov() + 1e-3 * x.var(0).mean() * torch.eye(9, dtype=torch.float64)
    assert torch.allclose(low @ low.T, expected, rtol=1e-12, atol=1e-12)


def test_log_joint_is_the_normal_density():
    g = rng()
    z, mu = torch.randn(2, 5, 4, generator=g), torch.randn(2, 3, 4, generator=g)
    var, weight = torch.rand(2, 3, 4, generator=g) + 0.1, torch.rand(2, 3, generator=g)
    slow = torch.distributions.Normal(mu.unsqueeze(1), var.sqrt().unsqueeze(1)).log_prob(z.unsqueeze(2)).sum(3)
    assert torch.allclose(log_joint(z, weight, mu, var), slow + weight.log().unsqueeze(1), atol=1e-4)


def test_mixture_finds_separated_clusters():
    g = rng()
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    data = {0: torch.cat([c + torch.randn(n, 2, generator=g) for c, n in zip(centres, (60, 30, 10), strict=True)])}
    found = row(fitted("mog", data), 0)
    order = torch.cdist(centres, found["mean"]).argmin(1)
    assert torch.allclose(found["mean"][order], centres, atol=1.0)
    assert torch.allclose(found["weight"][order], torch.tensor([0.6, 0.3, 0.1]), atol=1e-3)
    assert float((found["std"][order] - 1).abs().max()) < 0.6


def test_cosine_restarts_equals_torch():
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(adam, 5, 2)
    for epoch in range(50):
        assert abs(schedule.get_last_lr()[0] - cosine_restarts(epoch, 5)) < 1e-12
        adam.step()
        schedule.step()


def filled(layer: nn.Linear, stream: torch.Generator) -> nn.Linear:
    bound = layer.in_features**-0.5
    layer.weight.data.uniform_(-bound, bound, generator=stream)
    return layer


def slow_vae(x: torch.Tensor, o: dict, quirk: bool, stream: torch.Generator) -> list[torch.Tensor]:
    """One class with modules, autograd and a plain Adam; the same random numbers in the same order."""
    dim, h, z = x.shape[1], o["hidden_dim"], o["latent_dim"]
    low, high = x.min(0).values, x.max(0).values
    x = (x - low) / (high - low)  # the published min-max scaling before the z-score
    x = (x - x.mean(0)) / x.std(0)
    sizes = [(dim, h), (h, h), (h, 2 * z), (z, h), (h, h), (h, dim)]
    layers = [nn.Linear(a, b).double() for a, b in sizes]
    for i, layer in enumerate(layers):
        filled(layer, stream)
        if i < 2:
            layer.bias.data.zero_()
        else:
            layer.bias.data.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=stream)
    norms = [nn.BatchNorm1d(h).double() for _ in range(2)]
    act = nn.LeakyReLU(0.2)
    encoder = nn.Sequential(layers[0], norms[0], act, layers[1], norms[1], act, layers[2])
    decoder = nn.Sequential(layers[3], act, layers[4], act, layers[5])
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=o["lr"], foreach=False)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(adam, max(1, o["n_iters"] // 10), 2)
    for _ in range(o["n_iters"]):
        order = torch.randperm(len(x), generator=stream)
        noise = torch.empty(len(x), z, dtype=x.dtype).normal_(generator=stream)
        for pick, eps in zip(order.split(o["batch_size"]), noise.split(o["batch_size"]), strict=True):
            if len(pick) == 1:
                continue
            mu, logvar = encoder(x[pick]).chunk(2, 1)
            out = decoder(mu + eps * (logvar.exp() if quirk else (logvar / 2).exp()))
            likelihood = torch.distributions.Normal(out, 1.0).log_prob(x[pick]).sum()
            kl = (logvar.exp() + mu.square() - 1 - logvar).sum() / 2
            adam.zero_grad()
            ((kl - likelihood) / len(pick)).backward()
            adam.step()
        schedule.step()
    return [p.data for layer in layers[3:] for p in (layer.weight, layer.bias)]


@pytest.mark.parametrize("quirk", [True, False])
def test_stacked_vae_equals_modules_one_by_one(quirk):
    data, o = features(), SMALL["vae"] | {"n_iters": 20}
    stacked = fitted("vae", data, n_iters=20, std_quirk=quirk)
    classes = sorted(data)
    streams = dict(zip(classes, class_streams(classes, rng(1), torch.device("cpu")), strict=True))
    for c in classes:
        ours = [v for k, v in row(stacked, c).items() if k.startswith("dec")]
        for a, b in zip(ours, slow_vae(data[c], o, quirk, streams[c]), strict=True):
            assert float((a.view_as(b) - b).abs().max()) < 1e-12
    assert {k.split("_")[0] for k in stacked.rows} == {"mean", "std", "dec1", "dec2", "dec3"}  # no encoder is kept


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_fit_equals_one_class_at_a_time_on_cuda(kind):
    data = {c: x.cuda() for c, x in features().items()}
    together = fitted(kind, data)
    assert together.sample(torch.tensor(together.classes), 7, rng()).shape == (5, 7, 9)
    for c in data:
        assert worst_gap(row(together, c), row(fitted(kind, {c: data[c]}), c)) < 1e-10


def test_published_parameter_count_of_the_decoder():
    generator = GENERATORS["vae"](n_iters=1)
    generator.fit({0: torch.randn(3, 768)})
    assert generator.stored_bytes() == 4 * (788_224 + 2 * 768)


def test_shuffled_samples_keep_their_labels():
    generator = fitted("gauss", {c: torch.full((4, 2), float(c)) for c in range(5)})
    torch.manual_seed(0)
    x, labels = generator.shuffled(3, 50)
    assert torch.equal(x, labels[:, None].expand(-1, 2).float()) and labels.bincount().tolist() == [50] * 3
    assert not torch.equal(labels, labels.sort().values)
    blocks = labels.view(3, 50)
    assert all(len(block.unique()) == 3 for block in blocks), "each part of the order has every class"


def test_every_class_has_a_random_stream_of_its_own():
    first, second = (class_streams(classes, rng(1), torch.device("cpu")) for classes in ([0, 1, 2, 40], [1, 40]))
    assert len({s.initial_seed() for s in first}) == 4
    assert [first[1].initial_seed(), first[3].initial_seed()] == [s.initial_seed() for s in second]


def test_draws_of_a_mixture_follow_its_weights():
    generator = fitted("mog", features({0: 20}, dim=1), n_components=2)
    shape = generator.rows["mean"].shape
    generator.rows = {"weight": torch.tensor([[0.9, 0.1]]).double(), "mean": torch.tensor([[[-10.0], [10]]]).double()}
    generator.rows["std"] = torch.ones(shape).double()
    share = float((generator.sample(torch.tensor([0]), 3000, rng()) < 0).double().mean())
    assert abs(share - 0.9) < 4 * (0.09 / 3000) ** 0.5


def test_every_epoch_of_a_generator_is_shuffled():
    order = batch_order(10, {"n_iters": 6, "batch_size": 5, "constants": "common"}, rng())[0].view(3, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in order)
    assert len({tuple(epoch.tolist()) for epoch in order} | {tuple(range(10))}) == 4
