"""A vision transformer, CLIP's image tower or one of timm's, with prompts as tokens or prefixes in attention."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbone.attention import Parts, joint, run
from backbone.clip import CLIPBackbone, is_vit, patch_tokens
from backbone.edits import Edit, edited
from utils.errors import UserError
from utils.ranks import dealt


class PromptedViT(nn.Module):
    """`forward(images, prompts, prefixes)` -> class state (B, W) of [CLS ; prompts ; patches].

    Subclasses return the tokens before the first block and the parts of a block. The wrapped network is not copied.
    """

    width: int
    n_layers: int

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1 + P, W) with positions, the class token first."""
        raise NotImplementedError(f"{type(self).__name__} does not define tokens()")

    def parts(self, number: int) -> Parts:
        """The parts of a block."""
        raise NotImplementedError(f"{type(self).__name__} does not define parts()")

    @dealt("images", "prompts", "prefixes", "edits")
    def forward(
        self,
        images: Tensor,
        prompts: Tensor | None = None,
        prefixes: dict[int, Tensor] | None = None,
        prompt_states: bool = False,
        edits: Sequence[Edit] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """CLS state (B, W), with `prompt_states` also those of the prompts (B, n, W).

        prompts (B, n, W); prefixes (B, 2, P, W) by number of the block: P keys and P values in front of its own; edits
        are one per block.
        """
        x = self.tokens(images)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
        blocks = edited([self.parts(number) for number in range(self.n_layers)], edits)
        x, _ = run(blocks, x, prefixes=prefixes)
        x = self.last_norm(x if prompt_states else x[:, :1])
        return (x[:, 0], x[:, 1 : 1 + prompts.shape[1]]) if prompt_states else x[:, 0]


class PromptedClip(PromptedViT):
    """CLIP's image tower; without prompts the state projected by `visual.proj` is `encode_image`."""

    def __init__(self, clip: CLIPBackbone):
        super().__init__()
        if not is_vit(clip.clip):
            raise UserError(f"{clip.name} has a ResNet image tower without tokens; choose a ViT, e.g. ViT-B/16")
        self.visual = clip.clip.visual
        self.last_norm = self.visual.ln_post
        self.width, self.n_layers = clip.vision_width, len(self.visual.transformer.resblocks)

    def tokens(self, images: Tensor) -> Tensor:
        return patch_tokens(self.visual, images)

    def parts(self, number: int) -> Parts:
        block = self.visual.transformer.resblocks[number]
        attn = block.attn
        return Parts(
            block.ln_1,
            joint(attn.in_proj_weight, attn.in_proj_bias),
            attn.num_heads,
            lambda mixed, x: x + attn.out_proj(mixed),
            lambda x: x + block.mlp(block.ln_2(x)),
        )


class PromptedTimm(PromptedViT):
    """A plain vision transformer of timm (class token, one qkv layer, no rotary positions)."""

    def __init__(self, net: nn.Module, name: str):
        super().__init__()
        if not all(hasattr(net, part) for part in ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm")):
            raise UserError(
                f"timm:{name} is not a plain vision transformer: choose one such as timm:vit_base_patch16_224"
            )
        if getattr(net, "num_prefix_tokens", 0) != 1 or not hasattr(net.blocks[0].attn, "qkv"):
            raise UserError(
                f"timm:{name} does not have a single class token and a joint qkv layer: choose "
                "timm:vit_base_patch16_224"
            )
        self.net, self.last_norm = net, net.norm
        self.width, self.n_layers = net.embed_dim, len(net.blocks)

    def tokens(self, images: Tensor) -> Tensor:
        return self.net.norm_pre(self.net._pos_embed(self.net.patch_embed(images)))

    def parts(self, number: int) -> Parts:
        block = self.net.blocks[number]
        attn = block.attn
        return Parts(
            block.norm1,
            joint(attn.qkv.weight, attn.qkv.bias),
            attn.num_heads,
            lambda mixed, x: x + block.ls1(attn.proj(mixed)),
            lambda x: x + block.ls2(block.mlp(block.norm2(x))),
        )


def prompted_timm(name: str, pretrained: bool) -> PromptedTimm:
    """The network behind `timm:<name>`, frozen."""
    from backbone.timm_model import timm_model

    variant = name.removeprefix("timm:")
    return PromptedTimm(timm_model(1, variant, pretrained).net, variant).eval().requires_grad_(False)
