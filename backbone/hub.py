"""ViLT and BLIP from the library transformers: their files, their vocabulary, and what both share.

The library is imported if one of them is chosen. Its modules hold the weights; sequences and attention are ours, so
prompts, prefixes and dropped patches are supported, and attention is returned. A text is token ids of BERT's word
pieces whose end has the largest id of all, as in CLIP's texts: [SEP] is written as one id above the vocabulary.

Both networks take images preprocessed as for CLIP with their own mean, std and size: square center crops.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.clip import CLIPBackbone
from backbone.clip_files import sha256_state
from utils.errors import UserError
from utils.features import HALF

HUB_NAMES = {"vilt": "dandelin/vilt-b32-mlm", "blip": "Salesforce/blip-vqa-base"}


def library() -> ModuleType:
    """The package transformers, with its messages turned off."""
    try:
        import transformers
    except ImportError:
        raise UserError("ViLT and BLIP need an additional package: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def fetch(cls, place: str, download: bool, **options):
    """`cls.from_pretrained`, from disk alone unless `download`; one line on what is missing or damaged."""
    if not Path(place).is_dir() and ("\\" in place or place.startswith((".", "/")) or place.count("/") > 1):
        raise UserError(
            f"{place}: no such folder; use one that transformers saved (config.json, model.safetensors, "
            "vocab.txt), or a model name on its Hub"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # loading does not change any seeded stream
            return cls.from_pretrained(place, local_files_only=not download, **options)
    except Exception as error:  # the library raises many classes for missing, damaged and foreign files
        problem = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__  # the first sentence
        remedy = (
            "use a folder that transformers saved (config.json, model.safetensors, vocab.txt)"
            if Path(place).is_dir()
            else "add --clip_download 1 to download it, or use a folder that contains it"
        )
        raise UserError(f"cannot read the weights or vocabulary of {place} ({problem}); {remedy}") from None


def read_model(class_name: str, place: str, download: bool) -> nn.Module:
    """A network of transformers, with all weights found and without dropout."""
    cls = getattr(library(), class_name)
    net, report = fetch(cls, place, download, output_loading_info=True, dtype=torch.float32)
    absent = sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])})
    if absent:
        raise UserError(
            f"{place} is not a {class_name}: {len(absent)} of its weights are missing, {absent[0]} first; use "
            f"weights such as {' or '.join(HUB_NAMES.values())}"
        )
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net.eval()


class WordPieces:
    """BERT's tokenizer: [CLS] words end, padded with 0; `end` stands for [SEP] and is the largest id."""

    def __init__(self, tokenizer):
        self.tokenizer, self.start, self.sep = tokenizer, tokenizer.cls_token_id, tokenizer.sep_token_id
        if self.start is None or self.sep is None:
            raise UserError(
                f"{tokenizer.name_or_path} does not have [CLS] and [SEP]: use a folder with BERT's vocab.txt"
            )
        self.end = len(tokenizer)

    def tokenize(self, texts: Sequence[str], length: int, truncate: bool = False) -> Tensor:
        """Ids (N, length)."""
        found = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(found, texts, strict=True):
            ids = [self.start, *self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end]
            if len(ids) > length and not truncate:
                raise UserError(
                    f"text of {len(ids)} tokens, but the network reads {length}: {text!r}; shorten the text"
                )
            ids = ids[: length - 1] + ids[-1:] if len(ids) > length else ids
            row[: len(ids)] = torch.tensor(ids)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; start, end and padding are omitted."""
        return self.tokenizer.decode([i for i in ids if i not in (0, self.start, self.end)])


@functools.lru_cache(maxsize=4)
def read_words(place: str, download: bool = False) -> WordPieces:
    """The tokenizer that comes with the weights."""
    return WordPieces(fetch(library().AutoTokenizer, place, download))


class HubBackbone(nn.Module):
    """Used where methods expect a CLIPBackbone: preprocessed images and words, tokens of both, pooled features.

    `image_tokens` and `text_tokens` are what `make_fusion` takes; they depend on frozen weights only. Row 0 of either
    is the pooled feature of that modality by itself: the token that belongs there is the same for all inputs, and the
    fusion stores it.
    """

    normalize_images, set_resize = CLIPBackbone.normalize_images, CLIPBackbone.set_resize
    kind: str

    def __init__(self, words: WordPieces, name: str, resolution: int, side: int, mean_std: tuple, n_words: int):
        super().__init__()
        self.tokenizer, self.name, self.resolution, self.side = words, name, resolution, side
        self.start, self.sep, self.end = words.start, words.sep, words.end
        self.grid, self.context_length = resolution // side, n_words
        if resolution % side:
            raise UserError(
                f"images of {resolution} pixels are not a whole number of patches of {side}: choose a multiple"
            )
        self.n_image_tokens = 1 + self.grid**2
        self.mean, self.std = mean_std
        self.set_resize("shorter")

    def seal(self) -> None:
        """Call once the weights are loaded: computes their checksum, turns off gradients."""
        self.requires_grad_(False)
        self.sha256 = sha256_state(self.state_dict())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def tokenize(self, texts: str | list[str]) -> Tensor:
        """Texts -> ids (N, context_length) on the CPU."""
        return self.tokenizer.tokenize([texts] if isinstance(texts, str) else texts, self.context_length)

    def word_ids(self, ids: Tensor) -> Tensor:
        """Ids as in the network's embedding table."""
        ids = ids.to(self.device)
        return torch.where(ids == self.end, self.sep, ids)

    def make_fusion(self, trained: bool) -> nn.Module:
        """The transformer that fuses both: a copy if it is to be trained, so that pooled features do not change."""
        raise NotImplementedError(f"{type(self).__name__} does not define make_fusion()")


class HubImageEncoder:
    """`image_tokens` of a frozen network as an encoder of the FeatureStore, in half precision."""

    deterministic, precision, batch_size = True, HALF, 32

    def __init__(self, net: HubBackbone):
        self.net, self.shape = net, (net.n_image_tokens, net.vision_width)
        self.dim = self.shape[0] * self.shape[1]
        self.key = f"{net.kind}|{net.sha256}|tokens|bicubic {net.resolution} {net.mean} {net.std}"
        self.key += "" if net.resize_kind == "shorter" else f" {net.resize_kind}"

    @torch.no_grad()
    def __call__(self, images: Tensor | list[Image.Image]) -> Tensor:
        """uint8 or float [0, 1] images (B, C, H, W), or B PIL images -> (B, dim)."""
        if isinstance(images, Tensor):
            x = self.net.normalize_images(images.to(self.net.device))
        else:
            x = torch.stack([self.net.preprocess(image) for image in images]).to(self.net.device)
        return self.net.image_tokens(x).flatten(1).float().cpu()


def in_front(first: Tensor, prompts: Tensor | None, rest: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, int]:
    """[first ; prompts ; rest without its row 0] of rest (B, L, W), its mask, and the rows before the rest."""
    parts = [first.expand(len(rest), 1, -1), *([] if prompts is None else [prompts]), rest[:, 1:]]
    front = 1 + (0 if prompts is None else prompts.shape[1])
    return torch.cat(parts, dim=1), torch.cat([seen.new_ones(len(seen), front), seen[:, 1:]], dim=1), front
