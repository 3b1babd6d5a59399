"""The one way to load CLIP: `load_clip(name, device)` returns a CLIPBackbone from any source in clip_files.

From any source, a state dict with OpenAI's key names becomes a `clip.model.CLIP` whose sizes are read off the shapes.
The network's own modules are called: a method may replace a block's `ln_1`, `attn`, `ln_2` or `mlp` (adapters, LoRA),
and every function here uses the replacement.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms.v2 import functional as F

from backbone.attention import run
from backbone.clip_files import NOT_WEIGHTS, ClipWeights, find_weights, openai_clip
from backbone.tiny_tokenizer import TinyTokenizer
from utils.errors import UserError
from utils.flags import path
from utils.ranks import dealt

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPENAI_VOCAB = 49408
BICUBIC = InterpolationMode.BICUBIC
CROP_MARGIN = 256 / 224  # of the shorter side to the center that is cut out


def add_clip_args(parser: argparse.ArgumentParser, default: str = "ViT-L/14") -> None:
    """The flags that choose a CLIP; `default` is the method's."""
    parser.add_argument(
        "--clip_backbone",
        type=path,
        default=default,
        help="OpenAI name (ViT-B/32, ViT-L/14, RN50, ...), "
        "open_clip:<arch>/<tag>, path to a weight file or folder, or tiny",
    )
    parser.add_argument("--clip_dtype", choices=tuple(DTYPES), default="fp32", help="precision of CLIP's weights")
    parser.add_argument("--clip_download", type=int, choices=(0, 1), default=0, help="download missing weights")


def load_clip(
    name: str,
    device: torch.device | str = "cpu",
    dtype: str = "fp32",
    base_path: str | Path | None = None,
    download: bool = False,
) -> "CLIPBackbone":
    """The CLIP named by `--clip_backbone`, in eval mode; its parameters still require gradients.

    OpenAI's files are searched in ~/.cache/clip and `<base_path>/clip`, and downloaded only with `download`.
    """
    if dtype not in DTYPES:
        raise UserError(f"--clip_dtype {dtype}: choose {', '.join(DTYPES)}")
    weights = find_weights(name, base_path, bool(download))
    return CLIPBackbone(build_network(weights, name, DTYPES[dtype]), weights, name).to(device).eval()


def network_sizes(state: dict[str, Tensor]) -> dict:
    """Constructor arguments of `clip.model.CLIP`, read off the shapes of its weights."""
    conv, width = state["visual.conv1.weight"], state["ln_final.weight"].shape[0]
    sizes = {
        "embed_dim": state["text_projection"].shape[1],
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": len({key.split(".")[2] for key in state if key.startswith("transformer.resblocks.")}),
    }
    if "visual.proj" in state:
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        patch = conv.shape[-1]
        layers = len({key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")})
        vision_width = conv.shape[0]
    else:  # ResNet: total stride 32, and the stem's first convolution has half the width
        grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        patch = None
        layers = tuple(len({k.split(".")[2] for k in state if k.startswith(f"visual.layer{i}.")}) for i in (1, 2, 3, 4))
        vision_width = conv.shape[0] * 2
    vision = {"vision_layers": layers, "vision_width": vision_width, "vision_patch_size": patch}
    return sizes | vision | {"image_resolution": grid * (patch or 32)}


def build_network(weights: ClipWeights, name: str, dtype: torch.dtype) -> nn.Module:
    """State dict -> network. Built without drawing random numbers, so loading does not change any seeded stream."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in weights.state.items()}
    state = {key: value for key, value in state.items() if key not in NOT_WEIGHTS}
    try:
        with torch.device("meta"):
            net = openai_clip().model.CLIP(**network_sizes(state))
        net.load_state_dict(state, assign=True)
    except (KeyError, IndexError, RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{name} does not contain a CLIP with OpenAI's key names: {problem}") from None
    towers = [net.visual.transformer] if is_vit(net) else []
    for tower, heads in zip([net.transformer, *towers], reversed(weights.heads or ()), strict=False):
        for block in tower.resblocks:
            block.attn.num_heads, block.attn.head_dim = heads, block.attn.embed_dim // heads
    mask = causal_mask(net.context_length)
    for block in net.transformer.resblocks:
        block.attn_mask = mask
        set_activation(block, weights.activation)
    for tower in towers:
        for block in tower.resblocks:
            set_activation(block, weights.activation)
    cast(net, dtype)
    return net


def is_vit(net: nn.Module) -> bool:
    """Whether the image tower is a vision transformer (else a ResNet)."""
    return hasattr(net.visual, "class_embedding")


def causal_mask(length: int) -> Tensor:
    """(L, L) additive mask: row i sees columns 0..i."""
    return torch.full((length, length), float("-inf")).triu(1)


def set_activation(block: nn.Module, activation: str) -> None:
    """OpenAI trained with QuickGELU, which is what `clip.model` builds; most later models use the exact GELU."""
    if activation == "gelu":
        block.mlp.gelu = nn.GELU()
    elif activation != "quickgelu":
        raise UserError(f"unknown activation '{activation}' in the weights: use quickgelu or gelu")


def cast(net: nn.Module, dtype: torch.dtype) -> None:
    """Matrices to `dtype`; norms, embeddings and the logit scale stay fp32, as the forward of `clip.model` expects."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    net.text_projection.data = net.text_projection.data.to(dtype)
    if is_vit(net):
        net.visual.proj.data = net.visual.proj.data.to(dtype)


def clip_block(
    block: nn.Module, mask: Tensor | None, x: Tensor, seen: Tensor | None = None, attention: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A block on x (S, B, W) through its own (possibly replaced) modules, and its map."""
    h, padding = block.ln_1(x), None if seen is None else ~seen
    h, shares = block.attn(
        h, h, h, key_padding_mask=padding, attn_mask=mask, need_weights=attention, average_attn_weights=False
    )
    x = x + h
    return x + block.mlp(block.ln_2(x)), shares


def run_tower(
    blocks: Sequence[nn.Module],
    x: Tensor,
    mask: Tensor | None = None,
    seen: Tensor | None = None,
    attention: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Blocks on x (B, S, W), and on request a map (B, heads, S, S) of each; seen (B, S) is False at padding."""
    x, maps = run([partial(clip_block, block, mask) for block in blocks], x.transpose(0, 1), seen, attention=attention)
    return x.transpose(0, 1), maps


def patch_tokens(visual: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, R, R) -> (B, 1 + P, W) in front of the first block, the class token first."""
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, P, W)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    return visual.ln_pre(x + visual.positional_embedding.to(x.dtype))


def to_rgb(image: Image.Image) -> Image.Image:
    """Grayscale, palette and alpha images as three channels."""
    return image.convert("RGB")


to_rgb.fixed = True  # the same image each time: its result may be kept (--image_cache)


def load_tokenizer(weights: ClipWeights, vocab_size: int, name: str) -> TinyTokenizer | None:
    """The tokenizer that comes with the weights, or None for OpenAI's; either must have one id per embedding."""
    tokenizer = TinyTokenizer.load(weights.vocab) if weights.vocab else None
    n_ids = tokenizer.vocab_size if tokenizer else OPENAI_VOCAB
    if n_ids != vocab_size:
        raise UserError(
            f"{name} embeds {vocab_size} tokens but its tokenizer ({weights.vocab or 'OpenAI'}) has {n_ids}; "
            "load weights with their own vocabulary from a folder with vocab.json"
        )
    return tokenizer


class CLIPBackbone(nn.Module):
    """CLIP with what methods need besides its two encoders: token features, prompts as embeddings, attention.

    Features are raw (not normalized). End of text is the position of the largest token id.
    """

    def __init__(self, net: nn.Module, weights: ClipWeights, name: str):
        super().__init__()
        self.clip, self.name, self.sha256, self.activation = net, name, weights.sha256, weights.activation
        self.resolution, self.context_length = net.visual.input_resolution, net.context_length
        self.text_width, self.embed_dim = net.text_projection.shape
        self.vision_width = net.visual.conv1.out_channels * (1 if is_vit(net) else 2)
        self.n_image_tokens = len(net.visual.positional_embedding) if is_vit(net) else 0  # 1 + P; 0: a ResNet
        self.mean, self.std = weights.mean, weights.std
        self.tokenizer = load_tokenizer(weights, net.vocab_size, name)  # None: OpenAI's
        self.set_resize("shorter")
        self.register_buffer("causal_mask", causal_mask(self.context_length), persistent=False)

    def set_resize(self, kind: str) -> None:
        """How an image comes to the resolution R: its shorter side to R (CLIP's own), or to 8/7 R (crop), then the
        center; squash: both sides to R."""
        self.resize_kind, size = kind, self.resolution
        self.resize_size = [size, size] if kind == "squash" else [round(size * CROP_MARGIN) if kind == "crop" else size]
        steps = [Resize(self.resize_size if kind == "squash" else self.resize_size[0], BICUBIC), CenterCrop(size)]
        self.preprocess = Compose([*steps, to_rgb, ToTensor(), Normalize(self.mean, self.std)])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the matrices."""
        return self.clip.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.clip.logit_scale.device

    @property
    def logit_scale(self) -> Tensor:
        """The factor on cosine similarities (the exponential of the trained parameter)."""
        return self.clip.logit_scale.exp()

    def normalize_images(self, images: Tensor) -> Tensor:
        """uint8 or float [0, 1] images (B, 1|3, H, W) -> CLIP's input (B, 3, R, R): `preprocess`, batched."""
        if images.shape[-2:] != (self.resolution, self.resolution):
            images = F.resize(images, self.resize_size, interpolation=BICUBIC, antialias=True)
            images = F.center_crop(images, [self.resolution, self.resolution])
        images = images / 255 if images.dtype == torch.uint8 else images.clamp(0, 1)  # bicubic overshoots
        return F.normalize(images.expand(-1, 3, -1, -1), list(self.mean), list(self.std))

    def tokenize(self, texts: str | list[str]) -> Tensor:
        """Texts -> token ids (N, context_length) on the CPU, zero-padded after the end of text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.tokenizer is not None:
            return self.tokenizer.tokenize(texts, self.context_length)
        try:
            return openai_clip().tokenize(texts, self.context_length).long()
        except RuntimeError as error:
            raise UserError(f"{error}; shorten the text") from None

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) -> embeddings (N, L, W), without positions: what `encode_embeddings` takes."""
        return self.clip.token_embedding(tokens.to(self.device))

    @dealt("x")
    def encode_image(self, x: Tensor) -> Tensor:
        """Preprocessed images (B, 3, R, R) -> (B, D)."""
        return self.clip.encode_image(x)

    @dealt("x")
    def encode_unprojected(self, x: Tensor) -> Tensor:
        """Preprocessed images -> (B, vision_width), which `visual.proj` maps to `encode_image`."""
        held: list[Tensor] = []
        hook = self.clip.visual.ln_post.register_forward_hook(lambda _, inputs, out: held.append(out))
        self.encode_image(x)
        hook.remove()
        return held[0]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) -> (N, D); stops at the longest end of text, which is exact under the causal mask."""
        eot = tokens.argmax(dim=1)
        return self.encode_embeddings(self.token_embeddings(tokens[:, : int(eot.max()) + 1]), eot)

    @dealt("embeds", "eot")
    def encode_embeddings(self, embeds: Tensor, eot: Tensor, chunk: int = 0) -> Tensor:
        """Prompts as embeddings (N, L, W) with end of text at eot (N,) -> (N, D), with gradient.

        All L rows are encoded: cut L to the longest prompt beforehand. With `chunk`, prompts are sorted by length and
        encoded in groups of that size, each cut to its longest (reads eot; keep it on the CPU to avoid a device sync).
        The last block runs only at the end of text, the one row that is used.
        """
        if embeds.shape[1] > self.context_length:
            raise UserError(f"a prompt of {embeds.shape[1]} tokens exceeds CLIP's context of {self.context_length}")
        if 0 < chunk < len(embeds):
            order = eot.argsort()
            groups = [(rows.to(embeds.device), eot[rows]) for rows in order.split(chunk)]
            parts = [self.encode_embeddings(embeds[rows, : int(ends.max()) + 1], ends) for rows, ends in groups]
            return torch.cat(parts)[order.argsort().to(embeds.device)]
        eot = eot.to(embeds.device)
        x = self._text_input(embeds)
        *blocks, last = self.clip.transformer.resblocks
        x = run_tower(blocks, x, self.causal(x))[0].transpose(0, 1)  # (L, N, W)
        n = torch.arange(len(eot), device=eot.device)
        h = last.ln_1(x)
        future = torch.arange(len(x), device=eot.device) > eot[:, None]  # (N, L) columns that the row may not see
        a, _ = last.attn(h[eot, n][None], h, h, key_padding_mask=future, need_weights=False)
        x = x[eot, n] + a[0]
        return self.project_text(x + last.mlp(last.ln_2(x)))

    @dealt("x")
    def image_tokens(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Images (B, 3, R, R) -> last block's (B, 1 + P, vision_width); `project_image` of row 0 is encode_image.

        With `return_attention`, also the maps (B, heads, 1 + P, 1 + P) of all blocks.
        """
        if not is_vit(self.clip):
            raise UserError(f"{self.name} has a ResNet image tower without tokens; choose a ViT, e.g. ViT-B/16")
        x = patch_tokens(self.clip.visual, x)
        x, maps = run_tower(self.clip.visual.transformer.resblocks, x, attention=return_attention)
        return (x, maps) if return_attention else x

    @dealt("x")
    def early_feature(self, x: Tensor) -> Tensor:
        """Images (B, 3, R, R) -> (B, vision_width): the mean of the patches after the first block."""
        visual = self.clip.visual
        return run_tower(visual.transformer.resblocks[:1], patch_tokens(visual, x))[0][:, 1:].mean(1)

    @dealt("tokens")
    def text_tokens(self, tokens: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Token ids (N, L) -> (N, L, text_width) from the last block; `project_text` of the end row is encode_text.

        With `return_attention`, also the maps (N, heads, L, L) of all blocks. Rows after the end of text are
        meaningless.
        """
        x = self._text_input(self.token_embeddings(tokens))
        x, maps = run_tower(self.clip.transformer.resblocks, x, self.causal(x), attention=return_attention)
        return (x, maps) if return_attention else x

    def project_image(self, tokens: Tensor) -> Tensor:
        """Image tokens (..., vision_width) -> the joint space (..., D)."""
        return self.clip.visual.ln_post(tokens) @ self.clip.visual.proj

    def project_text(self, tokens: Tensor) -> Tensor:
        """Text tokens (..., text_width) -> the joint space (..., D)."""
        return self.clip.ln_final(tokens).to(self.dtype) @ self.clip.text_projection

    def _text_input(self, embeds: Tensor) -> Tensor:
        """Embeddings (N, L, W) with positions, in the network's precision."""
        return embeds.to(self.dtype) + self.clip.positional_embedding[: embeds.shape[1]].to(self.dtype)

    def causal(self, x: Tensor) -> Tensor:
        """The causal mask for x (N, L, W)."""
        return self.causal_mask[: x.shape[1], : x.shape[1]].to(x.dtype)
