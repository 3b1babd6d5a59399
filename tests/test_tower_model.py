"""Edits of transformer blocks: as the frozen network where their output side is zero, by hand where it is not."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import linear, relu

from backbone import edits
from backbone.adapters import ScaledLayers
from backbone.clip import load_clip
from backbone.prompted_vit import PromptedClip, PromptedTimm
from models.utils import tower_model
from tests import contract
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def small_vit(which="toy", pretrained=True) -> PromptedTimm:
    torch.manual_seed(0)
    net = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=0)
    return PromptedTimm(net, which).eval().requires_grad_(False)


@pytest.fixture
def vit() -> PromptedTimm:
    return small_vit()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def changed(edit) -> list:
    """An edit of the middle block of three."""
    return [edits.Chain(()), edit, edits.Chain(())]


def through(net: PromptedTimm, block) -> torch.Tensor:
    """The network with another function in place of its middle block."""
    blocks = net.net.blocks
    return net.net.norm(blocks[2](block(blocks[0](net.tokens(X)), blocks[1])))[:, 0]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_new_parts_leave_the_network_as_it_is(vit):
    adapters = edits.AdapterSet(3, 12, 4, 0.1)
    close(vit(X, edits=adapters.edits()), vit(X))
    nothing = edits.LowRank(torch.randn(2, 3, 12), torch.zeros(2, 12, 3), (0, 2))
    close(vit(X, edits=changed(nothing)), vit(X))
    close(vit(X, edits=changed(edits.ValueShift(torch.zeros(2, 12)))), vit(X))
    total = torch.zeros(12, 12)
    assert torch.equal(vit(X, edits=changed(edits.SecondMoment(total))), vit(X))
    assert len(adapters.down_bias) == 3 and sum(p.numel() for p in adapters.parameters()) == 3 * (2 * 4 * 12 + 4 + 12)
    full = edits.AdapterSet(12, 768, 64, 0.1)
    assert sum(p.numel() for p in full.parameters()) == 1_189_632  # as users of the released code count


def test_an_adapter_stands_beside_the_mlp(vit):
    torch.manual_seed(2)
    down, bias, up, last = torch.randn(4, 12), torch.randn(4), torch.randn(12, 4), torch.randn(12)

    def block(x, own):
        x = x + own.attn(own.norm1(x))
        return x + own.mlp(own.norm2(x)) + 0.5 * linear(relu(linear(x, down, bias)), up, last)

    close(vit(X, edits=changed(edits.Adapter(down, bias, up, last, 0.5))), through(vit, block))


@pytest.mark.parametrize("places", [(0, 2), (1, 2), (2,)])
def test_low_rank_terms_equal_those_in_the_weight(vit, places):
    torch.manual_seed(3)
    down, up = torch.randn(len(places), 2, 12), torch.randn(len(places), 12, 2)
    found = vit(X, edits=changed(edits.LowRank(down, up, places)))
    weight = vit.net.blocks[1].attn.qkv.weight
    for place, a, b in zip(places, down, up, strict=True):
        weight[12 * place : 12 * (place + 1)] += b @ a
    close(found, vit(X))


def test_a_value_shift_is_added_to_every_value(vit):
    shift = torch.randn(2, 12)

    def block(x, own):
        q, k, v = own.attn.qkv(own.norm1(x)).chunk(3, -1)
        v = v + shift[:, None]
        split = [t.unflatten(2, (3, 4)).transpose(1, 2) for t in (q, k, v)]
        mixed = ((split[0] @ split[1].mT / 2).softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
        x = x + own.attn.proj(mixed)
        return x + own.mlp(own.norm2(x))

    close(vit(X, edits=changed(edits.ValueShift(shift))), through(vit, block))


def test_second_moments_are_those_of_the_inputs_of_attention(vit):
    total = torch.zeros(12, 12, dtype=torch.float64)
    vit(X, edits=changed(edits.SecondMoment(total)))
    h = vit.net.blocks[1].norm1(vit.net.blocks[0](vit.tokens(X))).flatten(0, 1)
    close(total.float(), h.T @ h)


def test_fresh_tokens_replace_those_behind_the_class_token(vit):
    prompts, fresh = torch.randn(2, 12), torch.randn(2, 12)

    def block(x, own):
        return own(torch.cat([x[:, :1], fresh.expand(2, -1, -1), x[:, 3:]], 1))

    tokens = vit.tokens(X)
    x = torch.cat([tokens[:, :1], prompts.expand(2, -1, -1), tokens[:, 1:]], 1)
    blocks = vit.net.blocks
    wanted = vit.net.norm(blocks[2](block(blocks[0](x), blocks[1])))[:, 0]
    close(vit(X, prompts.expand(2, -1, -1), edits=changed(edits.FreshTokens(fresh))), wanted)


def test_each_block_takes_one_edit(vit):
    with pytest.raises(UserError, match="2 edits for a network of 3 blocks"):
        vit(X, edits=[edits.Chain(())] * 2)


@pytest.mark.parametrize("made", [small_vit, lambda: PromptedClip(load_clip("tiny").requires_grad_(False))])
def test_scales_and_shifts_by_name_equal_those_after_each_layer(made):
    net = made()
    own = ScaledLayers(net)
    x = X if made is small_vit else torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for gamma, beta in zip(own.gammas, own.betas, strict=True):
            gamma.fill_(1.0), beta.fill_(0.0)
        close(torch.func.functional_call(net, own.weights(net), (x,), tie_weights=False), net(x))
        before = net(x)
        for gamma, beta in zip(own.gammas, own.betas, strict=True):
            gamma.uniform_(0.5, 1.5), beta.uniform_(-0.5, 0.5)
        found = torch.func.functional_call(net, own.weights(net), (x,), tie_weights=False)
        assert torch.equal(net(x), before), "the network itself stays"
        hooks = []
        modules = dict(net.named_modules())
        for name, gamma, beta in zip(own.names, own.gammas, own.betas, strict=True):
            module = modules[name.rpartition(".")[0]]
            if name.endswith("in_proj_weight"):
                module.in_proj_weight.mul_(gamma[:, None]), module.in_proj_bias.mul_(gamma).add_(beta)
            else:
                shape = (1, -1, 1, 1) if module.weight.dim() == 4 else (-1,)
                shift = beta if module.bias is not None else torch.zeros_like(beta)

                def after(m, i, out, gamma=gamma, shift=shift, shape=shape):
                    return gamma.view(shape) * out + shift.view(shape)

                if name.endswith(("out_proj.weight", "qkv.weight")):  # read, not called
                    module.weight.mul_(gamma[:, None]), module.bias.mul_(gamma).add_(beta)
                else:
                    hooks.append(module.register_forward_hook(after))
        close(found, net(x))


@pytest.mark.parametrize("name", ["lora", "ease", "aper"])
def test_a_vit_of_timm_in_place_of_the_tower(name, monkeypatch):
    asked = []

    def made(which, pretrained):
        asked.append(pretrained)
        return small_vit()

    monkeypatch.setattr(tower_model, "prompted_timm", made)
    toy = contract.run(name, "toy-class-il", vit="timm:toy")
    assert contract.logits(toy).isfinite().all() and toy.model.n_layers == 3
    same = zip(toy.model.net.state_dict().values(), small_vit().state_dict().values(), strict=True)
    assert all(torch.equal(after, before) for after, before in same), "the transformer moved"
    contract.build(name, "toy-class-il", vit="timm:toy", vit_pretrained=0)
    assert asked == [True, False]
