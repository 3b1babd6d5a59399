"""Class-conditional feature generators by name: each models p(feature | class) of a frozen encoder.

    generator = GENERATORS["vae"](hidden_dim=64, latent_dim=16)
    generator.fit({0: features_0, 1: features_1}, rng)  # {label: (n_c, D)}
    x = generator.sample(torch.tensor([0, 1]), 256, rng)  # (2, 256, D)

See `utils.generative.base.ClassGenerator` for the whole interface.
"""

from utils.generative.base import ClassGenerator
from utils.generative.diffusion import Diffusion
from utils.generative.gaussians import DiagonalGaussian, FullGaussian, GaussianMixture
from utils.generative.vae import VAE

GENERATORS: dict[str, type[ClassGenerator]] = {
    g.kind: g for g in (VAE, GaussianMixture, DiagonalGaussian, Diffusion, FullGaussian)
}
