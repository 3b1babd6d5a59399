"""Adapters parallel to the MLP of transformer blocks, a weighted sum of which is chosen by a router for each image.

    x  ->  x + MLP(LN x) + sum_e g_e scale up_e(relu(down_e(x)))        up_e starts at zero, so nothing changes at first
    g = softmax over the top_k of  r + noise * (softplus(n) + 0.01), noise ~ N(0, 1) in training only, other g_e = 0

r and n are products of the image's class token with matrices that start at zero, or vectors that all texts share.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from utils import ranks
from utils.errors import UserError

SPREAD_FLOOR = 0.01  # least standard deviation of the noise on a router's logits


class Experts(nn.Module):
    """Adapters of one block on tokens (S, B, W), or on rows (B, W)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        n: int = 1,
        top_k: int = 1,
        routers: int = 1,
        on_token: bool = True,
        scale: float = 0.1,
        drop: float = 0.1,
    ):
        super().__init__()
        if top_k > n:
            raise UserError(f"--top_k {top_k} is more than the number of experts, {n}")
        self.top_k, self.on_token, self.scale, self.dropout = top_k, on_token, scale, nn.Dropout(drop)
        layers = [(nn.Linear(width, hidden), nn.Linear(hidden, width)) for _ in range(n)]
        for down, up in layers:
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)
        self.down = nn.ParameterList(down.weight for down, _ in layers)  # n times (H, W)
        self.down_bias = nn.ParameterList(down.bias for down, _ in layers)
        self.up = nn.ParameterList(up.weight for _, up in layers)  # n times (W, H)
        self.up_bias = nn.ParameterList(up.bias for _, up in layers)
        routed = 1 if n == 1 else routers
        shape = (routed, width, n) if on_token else (routed, n)
        self.route, self.noise = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        if n == 1:
            self.route.requires_grad_(False)
            self.noise.requires_grad_(False)
        self.router: Tensor | int = 0  # of all images or of each (B,); a negative one switches the experts off
        self.register_buffer("used", torch.zeros(n))  # how often each was chosen in training

    def gates(self, x: Tensor) -> Tensor:
        """(B, n) weights of the experts for x (S, B, W); at most top_k are above 0, and these sum to 1."""
        n, batch, router = len(self.down), x.shape[1], ranks.here(self.router)
        if n == 1:
            found = x.new_ones(batch, 1)
        else:
            at = router.clamp(min=0) if isinstance(router, Tensor) else max(router, 0)
            logits, spread = self.per_image(self.route[at], x), self.per_image(self.noise[at], x)
            if self.training:
                logits = logits + ranks.draw(torch.Tensor.normal_, logits) * (softplus(spread) + SPREAD_FLOOR)
            top, chosen = logits.topk(self.top_k, dim=1)
            found = torch.zeros_like(logits).scatter(1, chosen, top.softmax(1))
            if self.training:
                with torch.no_grad():
                    self.used += ranks.sum_of_rows((found > 0).sum(0))
        if isinstance(router, Tensor):
            return found * (router >= 0)[:, None]
        return found if router >= 0 else 0 * found

    def per_image(self, weight: Tensor, x: Tensor) -> Tensor:
        """(B, n) of router weights: of all images (W, n) or of each (B, W, n); without token (n,) or (B, n)."""
        if not self.on_token:
            return weight.expand(x.shape[1], -1)
        return x[0] @ weight if weight.dim() == 2 else (x[0][:, None] @ weight)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return self(x[None])[0]
        gates = self.gates(x)
        sparse = self.top_k < len(self.down)
        return self.scale * (self.chosen_only(x, gates) if sparse else self.all_of(x, gates))

    def stacked(self) -> tuple[Tensor, ...]:
        """down (n, H, W) and (n, H), up (n, W, H) and (n, W)."""
        return tuple(torch.stack(list(p)) for p in (self.down, self.down_bias, self.up, self.up_bias))

    def dropped(self, inner: Tensor) -> Tensor:
        """Dropout of inner (S, B, ...)."""
        if not (ranks.dealing() and self.training and self.dropout.p):
            return self.dropout(inner)
        kept = 1 - self.dropout.p
        mask = ranks.draw(lambda values: values.bernoulli_(kept), inner.detach(), dim=1)
        return inner * mask / kept

    def all_of(self, x: Tensor, gates: Tensor) -> Tensor:
        """Every expert on every image, weighted."""
        down, down_bias, up, up_bias = self.stacked()
        inner = self.dropped((torch.einsum("sbw,nhw->sbnh", x, down) + down_bias).relu())
        return torch.einsum("sbnh,nwh->sbw", inner * gates[:, :, None], up) + gates @ up_bias

    def chosen_only(self, x: Tensor, gates: Tensor) -> Tensor:
        """The same with the chosen experts of each image alone."""
        shares, chosen = gates.topk(self.top_k, dim=1)  # (B, k)
        down, down_bias, up, up_bias = (part[chosen] for part in self.stacked())
        inner = (torch.einsum("sbw,bkhw->sbkh", x, down) + down_bias).relu()
        inner = self.dropped(inner) * shares[:, :, None]
        return torch.einsum("sbkh,bkwh->sbw", inner, up) + (shares[:, :, None] * up_bias).sum(1)

    @torch.no_grad()
    def freeze_most_used(self) -> None:
        """No more gradient for the top_k experts chosen most often since the last call."""
        for e in self.used.topk(self.top_k).indices.tolist():
            for part in (self.down, self.down_bias, self.up, self.up_bias):
                part[e].requires_grad_(False)
        self.used.zero_()


class WithExperts(nn.Module):
    """MLP(LN x) + experts(x) in place of a block's MLP."""

    def __init__(self, norm: nn.Module, mlp: nn.Module, experts: Experts):
        super().__init__()
        self.norm, self.mlp, self.experts = norm, mlp, experts

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x)) + self.experts(x)


def add_experts(blocks: Iterable[nn.Module], **options) -> list[Experts]:
    """Experts in each block (of CLIP's: ln_2 and mlp); returns them."""
    made = []
    for block in blocks:
        bias = block.ln_2.bias
        experts = Experts(len(bias), **options).to(bias.device)
        block.mlp, block.ln_2 = WithExperts(block.ln_2, block.mlp, experts), nn.Identity()
        made.append(experts)
    return made
