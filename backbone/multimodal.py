"""CLIP's towers on any subset of patches and words, each at its own position, and a fusion transformer with attention.

A patch is embedded by itself (the convolution's stride is its width), so the towers run only on the given patches:
a quarter of the patches takes about a quarter of the time. Padding is masked out of every attention.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.adapters import add_ssf, layers_of
from backbone.attention import run
from backbone.clip import CLIPBackbone, run_tower
from backbone.clip_visual import fuse
from backbone.fusion import FusionTransformer
from utils.errors import UserError
from utils.memory.records import Tokens
from utils.ranks import dealt

SOURCES, LAYERS, HEADS = ("fusion", "tower", "mean"), ("last", "first", "mean"), ("mean", "max")
TUNED = ("ssf", "full", "none")


class Attention(NamedTuple):
    """Attention probabilities: of the class token, and between patches and words in the fusion."""

    image: Tensor  # (B, n)
    text: Tensor  # (B, m)
    i2t: Tensor  # (B, n, m) patches as queries
    t2i: Tensor  # (B, m, n) words as queries


def reduce(maps: list[Tensor], layer: str, heads: str) -> Tensor:
    """Maps (B, heads, ...) of all layers -> (B, ...)."""
    chosen = {"last": maps[-1:], "first": maps[:1], "mean": maps}[layer]
    over_layers = torch.stack(chosen).mean(0)
    return over_layers.mean(1) if heads == "mean" else over_layers.amax(1)


class MultimodalNet(nn.Module):
    """Tokens -> features (B, W): state of the fusion's class token + a linear map of both towers' pooled features."""

    def __init__(self, clip: CLIPBackbone, fusion: FusionTransformer, num_classes: int, tune: str = "ssf"):
        super().__init__()
        if not clip.n_image_tokens:
            raise UserError(f"{clip.name} has a ResNet image tower without patches; choose a ViT, e.g. ViT-B/16")
        self.clip, self.fusion = clip, fusion
        self.side = clip.clip.visual.conv1.kernel_size[0]
        self.cells, self.patch_width = clip.n_image_tokens - 1, 3 * self.side**2
        self.feature_dim = self.embed_dim = fusion.width
        self.pooled = nn.Linear(3 * clip.embed_dim, fusion.width)
        self.classifier = nn.Linear(fusion.width, num_classes)
        for name, value in (("mean", clip.mean), ("std", clip.std)):
            self.register_buffer(name, torch.tensor(value).repeat_interleave(self.side**2), persistent=False)
        clip.requires_grad_(tune == "full")
        if tune == "ssf":
            add_ssf(clip.clip, layers_of(clip.clip))

    def normalized(self, patches: Tensor) -> Tensor:
        """Patches of bytes as the tower takes them; floats are already normalized."""
        return patches if patches.is_floating_point() else (patches / 255 - self.mean) / self.std

    def in_bytes(self, patches: Tensor) -> Tensor:
        """The inverse: normalized patches as bytes."""
        return (
            patches
            if patches.dtype == torch.uint8
            else (((patches * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8))
        )

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Patches (B, n, 3 P P) -> (B, n, Wv): the convolution's output at their cells."""
        conv = self.clip.clip.visual.conv1
        return F.linear(self.normalized(patches).to(conv.weight.dtype), conv.weight.flatten(1), conv.bias)

    def image_states(self, tokens: Tokens, attention: bool = False) -> tuple[Tensor, list[Tensor], Tensor]:
        """States (B, 1 + n, Wv) of class token and patches, maps (B, heads, 1 + n, 1 + n), and the mask of real
        rows."""
        visual = self.clip.clip.visual
        x = self.embed_patches(tokens.patches)
        position = visual.positional_embedding.to(x.dtype)
        first = (visual.class_embedding.to(x.dtype) + position[0]).expand(len(x), 1, -1)
        x = visual.ln_pre(torch.cat([first, x + position[1 + tokens.places]], dim=1))
        seen = F.pad(tokens.seen, (1, 0), value=True)
        return *run_tower(visual.transformer.resblocks, x, seen=seen, attention=attention), seen

    def text_states(self, tokens: Tokens, attention: bool = False) -> tuple[Tensor, list[Tensor]]:
        """States (B, m, Wt) of the words, and maps (B, heads, m, m)."""
        text = self.clip.clip
        position = text.positional_embedding[tokens.word_places]
        x = (text.token_embedding(tokens.ids) + position).to(self.clip.dtype)
        return run_tower(text.transformer.resblocks, x, self.clip.causal(x), attention=attention)

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits (B, C)."""
        return self.classifier(self.features(tokens))

    def features(self, tokens: Tokens) -> Tensor:
        """(B, W) of which the classifier is a linear function."""
        image, _, seen = self.image_states(tokens)
        text, _ = self.text_states(tokens)
        state, _ = self.fused(image, seen, text, tokens.word_seen)
        return self.with_pooled(state, image, text, tokens)

    def with_pooled(self, state: Tensor, image: Tensor, text: Tensor, tokens: Tokens) -> Tensor:
        """The fusion's class state (B, W) and the linear map of both towers' pooled features, summed."""
        end = text[torch.arange(len(text), device=text.device), tokens.word_seen.sum(1) - 1]
        both = fuse(self.clip.project_image(image[:, 0]).float(), self.clip.project_text(end).float())
        return state + self.pooled(both)

    def fused(self, image, seen, text, word_seen, attention=False):
        """Class state (B, W) of [class ; image ; text], and maps of all blocks."""
        fusion = self.fusion
        parts = fusion.image_in(image.float()) + fusion.kinds[1], fusion.text_in(text.float()) + fusion.kinds[2]
        x = torch.cat([fusion.cls.expand(len(image), 1, -1), *parts], dim=1)
        seen = torch.cat([F.pad(seen, (1, 0), value=True), word_seen], dim=1)
        x, maps = run(fusion.blocks, x, seen, rows=1, attention=attention)
        return fusion.norm(x)[:, 0], maps

    @dealt("tokens")
    @torch.no_grad()
    def attend(self, tokens: Tokens, source: str = "fusion", layer: str = "last", heads: str = "mean"):
        """Features (B, W) and the Attention from which masks are made."""
        image, image_maps, seen = self.image_states(tokens, attention=source != "fusion")
        text, text_maps = self.text_states(tokens, attention=source != "fusion")
        state, maps = self.fused(image, seen, text, tokens.word_seen, attention=True)
        joint, n = reduce(maps, layer, heads), tokens.patches.shape[1]
        first, words = 2, 2 + n  # the fusion's class token and the tower's come first
        found = Attention(
            joint[:, 0, first:words], joint[:, 0, words:], joint[:, first:words, words:], joint[:, words:, first:words]
        )
        if source != "fusion":
            end = tokens.word_seen.sum(1) - 1
            own = reduce(text_maps, layer, heads)[torch.arange(len(end), device=end.device), end]  # (B, m)
            towers = reduce(image_maps, layer, heads)[:, 0, 1:], own
            both = (found.image, found.text) if source == "mean" else towers
            shares = [
                [v / v.sum(1, keepdim=True).clamp(min=1e-12) for v in pair] for pair in zip(towers, both, strict=True)
            ]
            found = found._replace(image=sum(shares[0]) / 2, text=sum(shares[1]) / 2)
        return self.with_pooled(state, image, text, tokens), found
