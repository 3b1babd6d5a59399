"""Flags that choose ViLT or BLIP in the place of CLIP with a fusion transformer, and the network and words they name."""

import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from backbone.fusion import SIZE_FLAGS
from backbone.hub import HUB_NAMES, HubBackbone, fetch, library, read_model, read_words
from utils.errors import UserError
from utils.flags import path, positive_int
from utils.settings import option


def add_hub_args(parser: ArgumentParser, flag: str, kinds: Sequence[str]) -> None:
    """`--<flag> clip` or one of `kinds`, and where the weights of these are."""
    words = {"vilt": "ViLT's one transformer", "blip": "BLIP's picture tower and question encoder"}
    offered = "; ".join(f"{kind}: {words[kind]}" for kind in kinds)
    parser.add_argument(
        f"--{flag}",
        choices=["clip", *kinds],
        default="clip",
        help=f"where picture and text meet. clip: a fusion transformer on CLIP's towers; {offered}",
    )
    for kind in kinds:
        parser.add_argument(
            f"--{kind}_weights",
            type=path,
            default=HUB_NAMES[kind],
            help="a folder that transformers saved, or a name of its Hub (fetched with --clip_download 1)",
        )
    if "blip" in kinds:
        parser.add_argument(
            "--blip_first",
            choices=["enc", "cls"],
            default="enc",
            help="first word of a question that looks at the image: [ENC] as in BLIP's training, or [CLS]",
        )
    parser.add_argument(
        "--vilt_resolution", type=positive_int, help="side of ViLT's square pictures (default: that of the weights)"
    )


def chosen(args: Namespace) -> str:
    """clip, vilt or blip, by --vqa_backbone or --fusion."""
    asked = (option(args, "vqa_backbone"), option(args, "fusion"))
    return next((kind for kind in HUB_NAMES if kind in asked), "clip")


def refuse_idle(args: Namespace) -> None:
    """Weights or a resolution of a network that is not chosen are a mistake, not a wish."""
    flag, kind = "fusion" if hasattr(args, "fusion") else "vqa_backbone", chosen(args)
    idle = [
        f"{other}_weights"
        for other, name in HUB_NAMES.items()
        if other != kind and option(args, f"{other}_weights", name) != name
    ]
    if kind != "vilt" and option(args, "vilt_resolution") is not None:
        idle.append("vilt_resolution")
    if kind != "blip" and option(args, "blip_first", "enc") != "enc":
        idle.append("blip_first")
    if idle:
        raise UserError(
            f"--{idle[0]} is read with --{flag} {idle[0].partition('_')[0]} only: add that, or leave it out"
        )


def load_hub(args: Namespace) -> HubBackbone:
    """The network of the flags, in eval mode and without dropout; a run on CLIP imports neither."""
    from backbone.blip import BlipBackbone
    from backbone.vilt import ViltBackbone

    kind = chosen(args)
    given = [name for name in SIZE_FLAGS if option(args, name) is not None]
    given += ["fusion_weights"] if option(args, "fusion_weights", "auto") != "auto" else []
    if given:
        raise UserError(f"--{given[0]} is about the fusion transformer on CLIP, {kind} has none: leave the flag out")
    if option(args, "clip_dtype", "fp32") != "fp32":
        raise UserError(f"--clip_dtype is about CLIP; {kind} runs in fp32: leave the flag out")
    place, download = place_of(args), bool(option(args, "clip_download", 0))
    words = read_words(place, download)
    if kind == "blip":
        first = option(args, "blip_first", "enc")
        return BlipBackbone(read_model("BlipForQuestionAnswering", place, download), words, place, first)
    return ViltBackbone(read_model("ViltModel", place, download), words, place, option(args, "vilt_resolution"))


def place_of(args: Namespace) -> str:
    """The folder or Hub name of the chosen network."""
    kind = chosen(args)
    return str(Path(option(args, f"{kind}_weights", HUB_NAMES[kind])).expanduser())


@functools.lru_cache(maxsize=4)
def text_length(place: str, download: bool = False) -> int:
    """How many word pieces the network at a place reads."""
    config = fetch(library().AutoConfig, place, download)
    return getattr(config, "text_config", config).max_position_embeddings


def hub_tokens(texts: Sequence[str], args: Namespace, cut: int | None = None) -> Tensor:
    """Ids of texts for the chosen network; with `cut`, longer texts lose their tail, else they are refused."""
    place, download = place_of(args), bool(option(args, "clip_download", 0))
    longest = text_length(place, download)
    return read_words(place, download).tokenize(texts, min(cut or longest, longest), truncate=cut is not None)
