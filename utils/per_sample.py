"""The sum of squared per-sample gradients of a network, exactly, in three implementations with the same results.

loop    sample by sample through autograd: any network.
vmap    one vectorized gradient for a few samples at once; not for networks with data-dependent control flow.
layers  one batched backward pass that sees each layer's input x and output gradient g; the gradient of a sample is
        sum_t g_t x_t^T over its positions t, squared and summed at once in pieces that stay in the cache. Only where
        every trained parameter belongs to a layer of RULES that is called once with samples first.

The network has to treat samples independently: in eval mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_weight

from utils import ranks
from utils.pair import Inputs, Pair

# numbers held at once on a CPU (near its cache; 64 MiB) and elsewhere (half a GiB; 2 GiB)
PIECE = {True: 2**17, False: 2**27}  # of a piece of per-sample gradients
GRADIENTS = {True: 2**24, False: 2**29}  # of all the gradients of vmap
LARGE_MAP = 32  # places of a map from which a CPU is faster with the library's own weight gradient, image by image
CHUNK = 16  # samples of a batched pass
VMAP_PAYS = 8  # samples whose gradients are held at once

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits (B, C), labels (B,) -> (B,)


def add_products(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total (O, K) += sum_b (left_b @ right_b)^2 for left (B, O, L), right (B, L, K)."""
    if left.shape[2] == 1:
        total.addmm_(left[:, :, 0].square().T, right[:, 0].square())
        return
    piece = PIECE[left.device.type == "cpu"]
    samples = max(1, piece // total.numel())
    rows = len(total) if samples > 1 else max(1, piece // total.shape[1])
    for l_part, r_part in zip(left.split(samples), right.split(samples), strict=True):
        for rows_of_total, rows_of_left in zip(total.split(rows), l_part.split(rows, dim=1), strict=True):
            if len(l_part) == 1:
                product = rows_of_left[0] @ r_part[0]
                rows_of_total.addcmul_(product, product)
            else:
                rows_of_total.add_((rows_of_left @ r_part).square_().sum(0))


def linear(layer, x, g, total) -> None:
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])  # (B, T, in), (B, T, out)
    if "weight" in total:
        add_products(total["weight"], g.transpose(1, 2), x)
    if "bias" in total:
        total["bias"].add_(g.sum(1).square().sum(0))


def convolution(layer, x, g, total) -> None:
    if "weight" in total and x.device.type == "cpu" and g[0, 0].numel() >= LARGE_MAP:
        for one, g_one in zip(x.split(1), g.split(1), strict=True):
            product = conv2d_weight(one, layer.weight.shape, g_one, layer.stride, layer.padding, layer.dilation)
            total["weight"].addcmul_(product, product)
    elif "weight" in total:
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (B, K, L)
        add_products(total["weight"].view(len(layer.weight), -1), g.flatten(2), patches.transpose(1, 2))
    if "bias" in total:
        total["bias"].add_(g.sum((2, 3)).square().sum(0))


def batch_norm(layer, x, g, total) -> None:
    shape = (1, -1, *[1] * (x.dim() - 2))
    unit = (x - layer.running_mean.view(shape)) * (layer.running_var + layer.eps).rsqrt().view(shape)
    affine(total, unit, g, g.dim() - 2, first=False)


def layer_norm(layer, x, g, total) -> None:
    affine(total, F.layer_norm(x, layer.normalized_shape, eps=layer.eps), g, x.dim() - 1 - len(layer.normalized_shape))


def affine(total, unit, g, n_positions: int, first: bool = True) -> None:
    """Gradients g * unit and g, summed over the positions of a sample: the dimensions after the batch, or the last."""
    dims = tuple(range(1, 1 + n_positions)) if first else tuple(range(g.dim() - n_positions, g.dim()))
    for name, value in (("weight", g * unit), ("bias", g)):
        if name in total:
            total[name].add_((value.sum(dims) if dims else value).square().sum(0))


def embedding(layer, x, g, total) -> None:
    rows = len(layer.weight)
    place = (
        x.reshape(len(x), -1) + rows * torch.arange(len(x), device=x.device)[:, None]
    )  # one number per sample and row
    distinct, slot = place.flatten().unique(return_inverse=True)
    sums = g.new_zeros(len(distinct), g.shape[-1]).index_add_(0, slot, g.reshape(-1, g.shape[-1]))
    total["weight"].index_add_(0, distinct % rows, sums.square())


RULES = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}


def follows_a_rule(layer: nn.Module) -> bool:
    """Whether `layers` knows the gradients of this module's own parameters."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.Embedding:
        return (
            layer.padding_idx is None and layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        )
    if type(layer) in {nn.BatchNorm1d, nn.BatchNorm2d}:
        return layer.running_mean is not None
    return type(layer) in RULES


class SquaredGradients:
    """Accumulates sum_b (d loss_b / d theta)^2 over batches, in `total` by parameter name; `form` None picks one."""

    def __init__(self, net: nn.Module, loss: Loss, form: str | None = None):
        self.net, self.loss, self.form = net, loss, form
        self.named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.total = {
            name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in self.named.items()
        }

    def add(self, inputs: Inputs, labels: torch.Tensor) -> None:
        """The samples of a batch."""
        with ranks.alone():
            self.form = self.form or self.quickest(inputs, labels)
            size = {"loop": 1, "vmap": self.at_once(), "layers": CHUNK}[self.form]
            inputs, labels = ranks.share(inputs), ranks.share(labels)
            for start in range(0, len(labels), size):
                getattr(self, f"add_{self.form}")(inputs[start : start + size], labels[start : start + size])

    def flat(self) -> torch.Tensor:
        """The sums over all ranks as one vector (P,), in the order of the trained parameters."""
        return ranks.summed(torch.cat([t.flatten() for t in self.total.values()]))

    def quickest(self, inputs: Inputs, labels: torch.Tensor) -> str:
        """`layers` if it applies, else `vmap` for a network that is small enough to benefit and can be vectorized."""
        if self.layers_tell_all(inputs):
            return "layers"
        names = list(self.net.named_parameters(remove_duplicate=False))
        shared = len(names) > len(list(self.net.parameters()))  # torch.func would not restore such parameters
        if shared or self.at_once() < VMAP_PAYS:
            return "loop"
        try:
            SquaredGradients(self.net, self.loss, "vmap").add_vmap(inputs[:2], labels[:2])
        except RuntimeError:  # the network's path depends on its data
            return "loop"
        return "vmap"

    def at_once(self) -> int:
        tensors = list(self.total.values())
        return max(1, GRADIENTS[tensors[0].device.type == "cpu"] // sum(t.numel() for t in tensors))

    # loop

    def add_loop(self, inputs: Inputs, labels: torch.Tensor) -> None:
        loss = self.loss(self.net(inputs), labels).sum()
        grads = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True)
        for total, g in zip(self.total.values(), grads, strict=True):
            if g is not None:
                total.addcmul_(g, g)

    # vmap

    def add_vmap(self, inputs: Inputs, labels: torch.Tensor) -> None:
        def loss_of_one(parameters, parts, label):
            one = [part[None] for part in parts]
            outputs = functional_call(self.net, parameters, (Pair(*one) if len(one) == 2 else one[0],))
            return self.loss(outputs, label[None])[0]

        parts = (inputs.image, inputs.text) if isinstance(inputs, Pair) else (inputs,)
        values = {name: p.detach() for name, p in self.named.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention on a CPU has no vectorized form
            for name, g in vmap(grad(loss_of_one), (None, 0, 0))(values, parts, labels).items():
                self.total[name].add_(g.square_().sum(0))

    # layers

    def owners(self) -> dict[nn.Module, dict[str, torch.Tensor]]:
        """Layer -> the totals of its own trained parameters."""
        names = {id(p): name for name, p in self.named.items()}
        found = {
            m: {k: self.total[names[id(p)]] for k, p in m.named_parameters(recurse=False) if id(p) in names}
            for m in self.net.modules()
        }
        return {m: own for m, own in found.items() if own}

    @torch.no_grad()
    def layers_tell_all(self, inputs: Inputs) -> bool:
        """Whether every trained parameter is in a known layer that is called once with as many rows as samples."""
        owners, calls = self.owners(), []
        if not all(map(follows_a_rule, owners)) or sum(map(len, owners.values())) != len(self.named) or len(inputs) < 3:
            return False
        hooks = [m.register_forward_pre_hook(lambda m, args: calls.append((m, args[0].shape[:1]))) for m in owners]
        try:
            for count in (2, 3):  # a layer whose first dimension is not the batch matches at most one of them
                calls.clear()
                self.net(inputs[:count])
                if {m: shape for m, shape in calls} != dict.fromkeys(owners, (count,)) or len(calls) != len(owners):
                    return False
        finally:
            for hook in hooks:
                hook.remove()
        return True

    def add_layers(self, inputs: Inputs, labels: torch.Tensor) -> None:
        with self.listening():
            self.loss(self.net(inputs), labels).sum().backward()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, gradients flow through the network but not into its parameters, and each layer adds its squares."""
        start = torch.zeros((), requires_grad=True, device=next(iter(self.total.values())).device)

        def heard(layer, args, output):
            output = output if output.requires_grad else output + start  # the first layer of a path
            x, total = args[0].detach(), self.owners_now[layer]
            version = x._version

            def take(g):
                if x._version != version:
                    raise RuntimeError(f"the input of {layer} was changed in place: use the form 'loop'")
                with torch.no_grad():
                    RULES[type(layer)](layer, x, g, total)

            output.register_hook(take)
            return output

        self.owners_now = self.owners()
        hooks = [layer.register_forward_hook(heard) for layer in self.owners_now]
        for p in self.named.values():
            p.requires_grad_(False)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for p in self.named.values():
                p.requires_grad_(True)
