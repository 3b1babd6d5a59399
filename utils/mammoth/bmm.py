"""A mixture of two beta distributions on [0, 1], fitted to losses to find noisy labels (arXiv 1904.11238)."""

import numpy as np
from scipy.stats import beta

from utils.errors import UserError

EDGE = 1e-4  # values are kept this far from 0 and 1, where a density may be infinite


class BetaMixture1D:
    """EM in which each component takes the mean and variance of its share of the values (method of moments)."""

    def __init__(self, max_iters: int = 10, alphas_init=(1, 2), betas_init=(2, 1), weights_init=(0.5, 0.5)):
        self.max_iters, self.lookup, self.lookup_resolution = max_iters, None, 100
        self.alphas, self.betas, self.weight = (
            np.array(v, dtype=float) for v in (alphas_init, betas_init, weights_init)
        )

    def likelihood(self, x, y: int) -> np.ndarray:
        """Density of component y."""
        return beta.pdf(np.clip(x, EDGE, 1 - EDGE), self.alphas[y], self.betas[y])

    def weighted_likelihood(self, x, y: int) -> np.ndarray:
        return self.weight[y] * self.likelihood(x, y)

    def probability(self, x) -> np.ndarray:
        """Density of the mixture."""
        return self.weighted_likelihood(x, 0) + self.weighted_likelihood(x, 1)

    def responsibilities(self, x) -> np.ndarray:
        """(2, N): share of each component in each value."""
        shares = np.stack([self.weighted_likelihood(x, y) for y in (0, 1)]) + 1e-12
        return shares / shares.sum(0)

    def posterior(self, x, y: int) -> np.ndarray:
        return self.responsibilities(x)[y]

    def predict(self, x) -> np.ndarray:
        """1 where the second component is more likely."""
        return (self.posterior(x, 1) > 0.5).astype(int)

    def fit(self, x) -> "BetaMixture1D":
        x = np.clip(np.asarray(x, dtype=float), EDGE, 1 - EDGE)
        if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
            raise UserError("BetaMixture1D: fit takes two or more finite numbers between 0 and 1")
        for _ in range(self.max_iters):
            shares = self.responsibilities(x)
            total = shares.sum(1)
            mean = shares @ x / total
            variance = np.maximum((shares * (x - mean[:, None]) ** 2).sum(1) / total, 1e-8)
            spread = np.maximum(mean * (1 - mean) / variance - 1, 1e-4)
            self.alphas, self.betas, self.weight = mean * spread, (1 - mean) * spread, total / len(x)
        return self

    def create_lookup(self, y: int) -> None:
        """Posterior of component y on a grid, made monotone where the tails cross: for `look_lookup`."""
        found = self.posterior(np.linspace(0, 1, self.lookup_resolution), y)
        peak = int(found.argmax())
        found[peak:] = found[peak]
        self.lookup = found

    def look_lookup(self, x, loss_max: float = 1.0, loss_min: float = 0.0) -> np.ndarray:
        """Posterior of raw losses between loss_min and loss_max, from the grid."""
        if self.lookup is None:
            raise UserError("BetaMixture1D: call create_lookup(component) before look_lookup")
        scaled = (np.asarray(x, dtype=float) - loss_min) / (loss_max - loss_min)
        return self.lookup[np.clip(scaled * (self.lookup_resolution - 1), 0, self.lookup_resolution - 1).astype(int)]
