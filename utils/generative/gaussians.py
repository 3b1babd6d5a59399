"""Closed-form and EM generators: Gaussians, a diagonal Gaussian mixture, and the real features as the upper bound."""

import math

import torch
from torch import Tensor

from utils.generative.base import ClassGenerator, moments, normal, pad, pad_rows, row_mask
from utils.kmeans import assign, lloyd, spread


class DiagonalGaussian(ClassGenerator):
    """Per-dimension mean and unbiased standard deviation."""

    kind = "gauss"

    def _fit_rows(self, xs, streams, progress):
        x, counts = pad(xs)
        mean, std = moments(x, counts)
        return {"mean": mean.to(x.dtype), "std": std.to(x.dtype)}

    def _draw(self, rows, n, rng):
        mean, std = rows["mean"].unsqueeze(1), rows["std"].unsqueeze(1)  # (K, 1, D)
        return mean + std * normal((len(mean), n, mean.shape[2]), rng, mean)


class FullGaussian(ClassGenerator):
    """Mean and full covariance, made invertible by `jitter` times the mean variance on its diagonal.

    Stored as the packed lower Cholesky factor, D (D + 1) / 2 numbers a class.
    """

    kind = "full_gauss"

    def __init__(self, jitter: float = 1e-3):
        super().__init__(jitter=jitter)

    def _fit_rows(self, xs, streams, progress):
        x, counts = pad(xs)
        mean, std = moments(x, counts)
        size = std.square().mean(1).sqrt().view(-1, 1, 1)  # root mean variance; 0 if all features are equal
        centred = (x.double() - mean.unsqueeze(1)) * row_mask(counts, x.shape[1]) / size.where(size > 0, 1)
        cov = centred.mT @ centred / (counts - 1).clamp(min=1).view(-1, 1, 1)  # (K, D, D), mean variance 1
        factor = torch.linalg.cholesky(self._regular(cov)) * size
        low = torch.tril_indices(*factor.shape[1:], device=x.device)
        return {"mean": mean.to(x.dtype), "factor": factor[:, low[0], low[1]].to(x.dtype)}

    def _regular(self, cov: Tensor) -> Tensor:
        """Covariances (K, D, D) of mean variance 1, made invertible."""
        cov.diagonal(dim1=1, dim2=2).add_(self.options["jitter"])
        return cov

    def _draw(self, rows, n, rng):
        mean = rows["mean"]
        n_classes, dim = mean.shape
        factor = mean.new_zeros(n_classes, dim, dim)
        low = torch.tril_indices(dim, dim, device=mean.device)
        factor[:, low[0], low[1]] = rows["factor"]
        return torch.baddbmm(mean.unsqueeze(1), normal((n_classes, n, dim), rng, mean), factor.mT)


class RealFeatures(ClassGenerator):
    """No model: the features themselves, drawn with replacement. The upper bound of any generator, at its price."""

    kind = "real"

    def _fit_rows(self, xs, streams, progress):
        x, counts = pad(xs)
        return {"mean": x, "count": counts}  # features (K, N, D), zero-padded, and how many there are (K,)

    def _joined(self, old, new):
        n = max(old["mean"].shape[1], new["mean"].shape[1])
        padded = [pad_rows(rows["mean"], n) for rows in (old, new)]
        return {"mean": torch.cat(padded), "count": torch.cat([old["count"], new["count"]])}

    def _draw(self, rows, n, rng):
        features, counts = rows["mean"], rows["count"]
        where = rng.device if rng is not None else features.device
        drawn = torch.rand(len(features), n, generator=rng, device=where).to(features.device) * counts.unsqueeze(1)
        place = drawn.long().minimum(counts.unsqueeze(1) - 1)  # the product may round up to the count
        return features.gather(1, place.unsqueeze(2).expand(-1, -1, features.shape[2]))


class ShrunkGaussian(FullGaussian):
    """The same with the shrinkage of FeCAM (arXiv 2309.14062): S + mean variance I + mean covariance (1 - I)."""

    kind = "shrunk_gauss"

    def _regular(self, cov):
        dim = cov.shape[1]
        variance = cov.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        between = (cov.sum((1, 2), keepdim=True) - dim * variance) / max(1, dim * (dim - 1))
        eye = torch.eye(dim, dtype=cov.dtype, device=cov.device)
        return super()._regular(cov + variance * eye + between * (1 - eye))


class GaussianMixture(ClassGenerator):
    """Diagonal Gaussian mixture by EM from a k-means start; a class stops once its mean log-likelihood gains < 1e-3.

    The work is done in float64 on features centered and divided by the class's root mean variance; variances get
    `FLOOR` times the mean variance added, so a component with a single feature stays finite.
    """

    kind = "mog"
    FLOOR = 1e-6
    TOLERANCE = 1e-3
    LLOYD_STEPS = 100

    def __init__(self, n_components: int = 5, n_iters: int = 500):
        super().__init__(n_components=n_components, n_iters=n_iters)

    def _fit_rows(self, xs, streams, progress):
        x, counts = pad(xs)
        mean, std = moments(x, counts)
        size = std.square().mean(1).sqrt().view(-1, 1, 1)
        mask = row_mask(counts, x.shape[1])
        z = (x.double() - mean.unsqueeze(1)) * mask / size.where(size > 0, 1)
        uniforms = [torch.rand(self.options["n_components"], generator=s, device=s.device) for s in streams]
        centres = lloyd(z, mask, spread(z, mask, torch.stack(uniforms).double()), self.LLOYD_STEPS)
        weight, mu, var = self._em(z, mask, centres)
        mu = mu * size + mean.unsqueeze(1)
        return {k: v.to(x.dtype) for k, v in {"weight": weight, "mean": mu, "std": var.sqrt() * size}.items()}

    def _em(self, z: Tensor, mask: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = mask.sum(1).double()  # (K, 1)
        member = assign(z, centres) * mask  # (K, N, M)
        weight, mu, var = self._maximise(z, member, n, centres)
        var = (var * weight.unsqueeze(2)).sum(1, keepdim=True).expand_as(var)  # pooled: no component starts collapsed
        live = torch.ones_like(n, dtype=torch.bool)
        before = torch.full_like(n, -math.inf)
        for _ in range(self.options["n_iters"]):
            joint = log_joint(z, weight, mu, var)  # (K, N, M)
            fit = (joint.logsumexp(2) * mask.squeeze(2)).sum(1, keepdim=True) / n
            live = live & ((fit - before).abs() >= self.TOLERANCE)  # a converged class does not change any more
            if not bool(live.any()):
                break
            before = fit
            new = self._maximise(z, joint.softmax(2) * mask, n, mu)
            alive = live.unsqueeze(2)
            weight, mu, var = new[0].where(live, weight), new[1].where(alive, mu), new[2].where(alive, var)
        return weight, mu, var

    def _maximise(self, z: Tensor, member: Tensor, n: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mass = member.sum(1)  # (K, M)
        safe = mass.clamp(min=1e-12).unsqueeze(2)
        mu = (member.mT @ z / safe).where(mass.unsqueeze(2) > 1e-12, old)
        second = member.mT @ z.square() / safe - 2 * mu * (member.mT @ z) / safe + mu.square()
        return mass / n, mu, second.clamp(min=0) + self.FLOOR

    def _draw(self, rows, n, rng):
        mean, std, weight = rows["mean"], rows["std"], rows["weight"]  # (K, M, D), (K, M, D), (K, M)
        weight = weight if rng is None else weight.to(rng.device)
        part = torch.multinomial(weight, n, replacement=True, generator=rng).to(mean.device)
        part = part.unsqueeze(2).expand(-1, -1, mean.shape[2])  # (K, n, D)
        return mean.gather(1, part) + std.gather(1, part) * normal(tuple(part.shape), rng, mean)


def log_joint(z: Tensor, weight: Tensor, mu: Tensor, var: Tensor) -> Tensor:
    """log of weight_m N(z; mu_m, var_m), (K, N, M), as two matrix products."""
    precision = 1 / var
    square = z.square() @ precision.mT - 2 * z @ (mu * precision).mT + (mu.square() * precision).sum(2).unsqueeze(1)
    log_det = (var.log() + math.log(2 * math.pi)).sum(2).unsqueeze(1)
    return weight.log().unsqueeze(1) - (square + log_det) / 2
