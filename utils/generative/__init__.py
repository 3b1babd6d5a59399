"""Class-conditional feature generators by name: each models p(feature | class) of a frozen encoder.

    generator = GENERATORS["vae"](hidden_dim=64, latent_dim=16)
    generator.fit({0: features_0, 1: features_1}, rng)  # {label: (n_c, D)}
    x = generator.sample(torch.tensor([0, 1]), 256, rng)  # (2, 256, D)

See `utils.generative.base.ClassGenerator` for the whole interface.
"""

from utils.flags import boolean, positive, positive_int
from utils.generative.base import ClassGenerator
from utils.generative.diffusion import CONSTANTS, Diffusion
from utils.generative.gaussians import DiagonalGaussian, FullGaussian, GaussianMixture, RealFeatures
from utils.generative.vae import VAE

GENERATORS: dict[str, type[ClassGenerator]] = {
    g.kind: g for g in (VAE, GaussianMixture, DiagonalGaussian, Diffusion, FullGaussian, RealFeatures)
}


def add_generator_args(add) -> None:
    """The flags of a method's generators; `add` is a parser's add_argument."""
    add(
        "--g_models",
        choices=sorted(GENERATORS),
        default="vae",
        help="generator of each class's features; real: they are kept",
    )
    add("--gr_mog_n_components", type=positive_int, default=5, help="number of mixture components")
    add("--gr_mog_n_iters", type=positive_int, default=500, help="maximum number of EM iterations")
    add("--gr_vae_hidden_dim", type=positive_int, default=512, help="width of a VAE")
    add("--gr_vae_latent_dim", type=positive_int, default=256, help="also the width of the diffusion network")
    add("--gr_vae_n_iters", type=positive_int, default=500, help="epochs of a VAE, steps of a diffusion network")
    add("--lr_vae", type=positive, default=2e-4, help="learning rate of a VAE")
    add(
        "--vae_std_quirk",
        type=boolean,
        default=True,
        help="standard deviation of the posterior is exp(logvar), as in the released code",
    )
    add(
        "--diffusion_noise_quirk",
        type=boolean,
        default=True,
        help="training noise is a product of two normals, as in the released code",
    )
    add(
        "--diffusion_renoise_quirk",
        type=boolean,
        default=True,
        help="each reverse step adds fresh noise, as in the released code; 0: the exact posterior",
    )
    add(
        "--diffusion_constants",
        choices=CONSTANTS,
        default="released",
        help="offset of the cosine schedule, frequencies of the time embedding, and batches",
    )


def make_generator(args) -> ClassGenerator:
    """The generator object of --g_models."""
    iterations = args.gr_vae_n_iters if not args.debug_mode else 10
    options = {
        "vae": {
            "hidden_dim": args.gr_vae_hidden_dim,
            "latent_dim": args.gr_vae_latent_dim,
            "n_iters": iterations,
            "lr": args.lr_vae,
            "std_quirk": args.vae_std_quirk,
        },
        "mog": {"n_components": args.gr_mog_n_components, "n_iters": 1 if args.debug_mode else args.gr_mog_n_iters},
        "diffusion": {
            "hidden_dim": args.gr_vae_latent_dim,
            "n_iters": iterations,
            "noise_quirk": args.diffusion_noise_quirk,
            "renoise_quirk": args.diffusion_renoise_quirk,
            "constants": args.diffusion_constants,
        },
    }
    return GENERATORS[args.g_models](**options.get(args.g_models, {}))
