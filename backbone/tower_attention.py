"""What CLIP's towers attend to: of pictures the class token to the patches, of texts their end to the words."""

import torch
from torch import Tensor, nn


def run(blocks, x: Tensor, padding: Tensor | None, mask: Tensor | None, attention: bool) -> tuple[Tensor, list[Tensor]]:
    """CLIP's blocks on x (B, S, W), and maps (B, heads, S, S) when asked for; padding (B, S) is True where nothing is."""
    x, maps = x.transpose(0, 1), []
    for block in blocks:
        h = block.ln_1(x)
        h, found = block.attn(
            h, h, h, key_padding_mask=padding, attn_mask=mask, need_weights=attention, average_attn_weights=False
        )
        x = x + h
        x = x + block.mlp(block.ln_2(x))
        maps.append(found)
    return x.transpose(0, 1), maps if attention else []


def causal(length: int, device: torch.device) -> Tensor:
    """(L, L): True where a word may not look, at those behind it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


@torch.no_grad()
def patch_attention(visual: nn.Module, images: Tensor) -> Tensor:
    """(B, n) attention of the class token to the patches of images (B, 3, R, R), mean over blocks and heads."""
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, n, W)
    first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype))
    _, maps = run(visual.transformer.resblocks, x, None, None, attention=True)
    return torch.stack(maps).mean((0, 2))[:, 0, 1:].float()


@torch.no_grad()
def word_attention(clip: nn.Module, ids: Tensor) -> Tensor:
    """(B, L) attention of the end of text to the words of ids (B, L), mean over blocks and heads."""
    x = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
    x = x.to(clip.visual.conv1.weight.dtype)
    _, maps = run(clip.transformer.resblocks, x, None, causal(ids.shape[1], ids.device), attention=True)
    return torch.stack(maps).mean((0, 2))[torch.arange(len(ids), device=ids.device), ids.argmax(1)].float()
