"""Linear layers that take a low-rank term with the input, and the blocks of a vision transformer made of them.

    y = (W + B A) x + b     AB = {"B": (out, r), "A": (r, in)}, or the product (out, in) itself; with a leading
                            batch axis, (B, out, r) and (B, r, in), every sample has its own term

Choices [only the names and "a dict of additive terms by block" are documented]: the terms of a block are AB["qkv"],
AB["proj"], AB["fc1"], AB["fc2"]; missing ones are zero.
"""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from utils.errors import UserError


def low_rank(x: Tensor, AB: dict | Tensor) -> Tensor:
    """x (B, N, in) -> (B, N, out)."""
    return x @ AB["A"].mT @ AB["B"].mT if isinstance(AB, dict) else x @ AB.mT


class LoRALayer(nn.Linear):
    """A linear layer with an optional term."""

    def forward(self, x: Tensor, AB: dict | Tensor | None = None) -> Tensor:
        out = super().forward(x)
        return out if AB is None else out + low_rank(x, AB)


class LoRAAttention(nn.Module):
    """Self-attention of tokens (B, N, D) with one qkv layer."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **others,
    ):
        super().__init__()
        wanted = [
            name for name in ("qk_norm", "scale_norm", "gated") if others.get(name)
        ]  # timm's, of other attentions
        if wanted:
            raise UserError(f"LoRAAttention does not have {', '.join(wanted)}; pass timm's Attention as attn_layer")
        self.num_heads = num_heads
        self.qkv, self.proj = LoRALayer(dim, 3 * dim, bias=qkv_bias), LoRALayer(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)

    def forward(self, x: Tensor, AB: dict | None = None) -> Tensor:
        AB, (count, length, dim) = AB or {}, x.shape
        qkv = self.qkv(x, AB.get("qkv")).view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropped = self.attn_drop.p if self.training else 0.0
        out = scaled_dot_product_attention(*qkv.unbind(0), dropout_p=dropped)  # (B, heads, N, D / heads)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(count, length, dim), AB.get("proj")))


class LoRAMlp(nn.Module):
    """Two linear layers."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer=nn.GELU,
        drop: float = 0.0,
        **_,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1, self.fc2 = (
            LoRALayer(in_features, hidden_features),
            LoRALayer(hidden_features, out_features or in_features),
        )
        self.act, self.drop = act_layer(), nn.Dropout(drop)

    def forward(self, x: Tensor, AB: dict | None = None) -> Tensor:
        AB = AB or {}
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x, AB.get("fc1")))), AB.get("fc2")))
