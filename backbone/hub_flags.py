"""Flags that choose ViLT or BLIP instead of CLIP with a fusion transformer, and the network and words they select."""

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
    """`--<flag> clip` or one of `kinds`, and where to find their weights."""
    words = {"vilt": "ViLT's one transformer", "blip": "BLIP's image tower and question encoder"}
    offered = "; ".join(f"{kind}: {words[kind]}" for kind in kinds)
    parser.add_argument(
        f"--{flag}",
        choices=["clip", *kinds],
        default="clip",
        help=f"how image and text are fused. clip: a fusion transformer on CLIP's towers; {offered}",
    )
    for kind in kinds:
        parser.add_argument(
            f"--{kind}_weights",
            type=path,
            default=HUB_NAMES[kind],
            help="a folder that transformers saved, or a model name on its Hub (downloaded with --clip_download 1)",
        )
    if "blip" in kinds:
        parser.add_argument(
            "--blip_first",
            choices=["enc", "cls"],
            default="enc",
            help="first token of a question that attends to the image: [ENC] as in BLIP's training, or [CLS]",
        )
    parser.add_argument(
        "--vilt_resolution",
        type=positive_int,
        help="side of ViLT's square images in pixels (default: that of the weights)",
    )


def chosen(args: Namespace) -> str:
    """clip, vilt or blip, by --vqa_backbone or --fusion."""
    asked = (option(args, "vqa_backbone"), option(args, "fusion"))
    return next((kind for kind in HUB_NAMES if kind in asked), "clip")


def refuse_idle(args: Namespace) -> None:
    """Refuse weights or a resolution of a network that is not chosen."""
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
            f"--{idle[0]} is used only with --{flag} {idle[0].partition('_')[0]}: add that, or leave it out"
        )


def load_hub(args: Namespace) -> HubBackbone:
    """The network chosen by the flags, in eval mode and without dropout; a run on CLIP imports neither."""
    from backbone.blip import BlipBackbone
    from backbone.vilt import ViltBackbone

    kind = chosen(args)
    given = [name for name in SIZE_FLAGS if option(args, name) is not None]
    given += ["fusion_weights"] if option(args, "fusion_weights", "auto") != "auto" else []
    if given:
        raise UserError(
            f"--{given[0]} is for the fusion transformer on CLIP, but {kind} does not have one: leave the flag out"
        )
    if option(args, "clip_dtype", "fp32") != "fp32":
        raise UserError(f"--clip_dtype is for CLIP, but {kind} runs in fp32: leave the flag out")
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
    """The maximum number of word pieces of the network in a folder or of a Hub name."""
    config = fetch(library().AutoConfig, place, download)
    return getattr(config, "text_config", config).max_position_embeddings


def hub_tokens(texts: Sequence[str], args: Namespace, cut: int | None = None) -> Tensor:
    """Ids of texts for the chosen network; with `cut`, longer texts are truncated, else refused."""
    place, download = place_of(args), bool(option(args, "clip_download", 0))
    longest = text_length(place, download)
    return read_words(place, download).tokenize(texts, min(cut or longest, longest), truncate=cut is not None)
