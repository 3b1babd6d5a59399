"""Networks: what each returnt returns, vectors of parameters and gradients, errors."""

import argparse
from argparse import Namespace

import pytest
import torch
import torchvision
from torch import nn

from backbone import get_backbone, get_backbone_class, get_backbone_names, num_flat_features
from utils.cli import registry, signatures
from utils.errors import UserError

SMALL = {
    "resnet18": ({"num_filters": 4}, (3, 32, 32)),
    "resnet34": ({"num_filters": 4}, (3, 32, 32)),
    "reduced-resnet18": ({"num_filters": 4}, (3, 32, 32)),
    "mnistmlp": ({"mlp_hidden_size": 12}, (1, 28, 28)),
    "timm:test_resnet": ({"pretrained": False}, (3, 32, 32)),
    "timm:test_vit": ({"pretrained": False}, (3, 160, 160)),
}


def build(name: str, n_classes: int = 7, **changes) -> nn.Module:
    torch.manual_seed(0)
    return get_backbone(Namespace(backbone=name, num_classes=n_classes, **(SMALL.get(name, ({},))[0] | changes)))


def images(name: str, n: int = 3) -> torch.Tensor:
    return torch.rand(n, *SMALL[name][1], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
def test_what_each_returnt_gives(name):
    net, x = build(name).eval(), images(name)
    with torch.no_grad():
        out, features, both = net(x), net.features(x), net(x, returnt="both")
        full, same = net(x, returnt="full"), net(x, "all")
    assert out.shape == (3, 7) and features.shape == (3, net.feature_dim)
    torch.testing.assert_close(net.classifier(features), out)
    torch.testing.assert_close(both, (out, features))
    torch.testing.assert_close(full[0], out)
    torch.testing.assert_close(full[1], same[1])
    with pytest.raises(ValueError, match="returnt 'logits'"):
        net(x, returnt="logits")


@pytest.mark.parametrize("name", SMALL)
def test_in_eval_mode_a_sample_does_not_depend_on_its_batch(name):
    net, x = build(name), images(name)
    net.train()(x)  # batch statistics of its own
    net.eval()
    with torch.no_grad():
        alone = torch.cat([net(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(net(x.flip(0)).flip(0), alone, atol=1e-5, rtol=1e-4)


def test_resnet_maps_and_their_form_before_relu():
    net, x = build("resnet18").eval(), images("resnet18")
    maps = net(x, "full")[1]
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
    out = net(x)
    net.set_return_prerelu(True)
    raw = net(x, "full")[1]
    assert all(float(r.detach().min()) < 0 for r in raw)
    torch.testing.assert_close([r.relu() for r in raw], maps)
    torch.testing.assert_close(net(x), out)
    torch.testing.assert_close(net.features(x), maps[-1].mean((2, 3)))


@pytest.mark.parametrize("name, filters", [("resnet18", 64), ("resnet34", 64), ("reduced-resnet18", 20)])
def test_resnet_equals_torchvision_with_a_small_stem(name, filters):
    """torchvision's network, its first convolution 3x3, no pooling after it, and our weights under its names."""
    net = get_backbone(Namespace(backbone=name), num_classes=10)
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [3, 4, 6, 3] if name == "resnet34" else [2, 2, 2, 2], num_classes=10
    )
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = {k.replace("shortcut", "downsample").replace("classifier", "fc"): v for k, v in net.state_dict().items()}
    assert ours.keys() == theirs.state_dict().keys()
    assert ours["layer4.0.conv1.weight"].shape[0] == 8 * filters
    if filters == 64:
        theirs.load_state_dict(ours)
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(net(x), theirs(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(net.bn1.running_mean, theirs.bn1.running_mean)


def test_parameter_counts():
    count = {
        n: sum(p.numel() for p in build(n, 10, **c).parameters())
        for n, c in (("mnistmlp", {"mlp_hidden_size": 100}), ("resnet18", {"num_filters": 64}))
    }
    assert count == {"mnistmlp": 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10, "resnet18": 11_173_962}


@pytest.mark.parametrize("name", ["resnet18", "mnistmlp", "timm:test_resnet"])
def test_parameter_vectors(name):
    net, x = build(name), images(name)
    vector = net.get_params()
    assert vector.shape == (sum(p.numel() for p in net.parameters()),)
    torch.testing.assert_close(torch.autograd.grad((vector**2).sum() / 2, net.classifier.bias)[0], net.classifier.bias)
    fresh = torch.randn(len(vector), generator=torch.Generator().manual_seed(3))
    net.set_params(fresh)
    assert torch.equal(net.get_params(), fresh)
    before = fresh.clone()
    net(x).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert torch.equal(fresh, before)  # the vector is the caller's, training does not write into it
    with pytest.raises(ValueError, match="vector of"):
        net.set_params(fresh[:-1])


def test_gradient_vectors():
    net, x = build("mnistmlp"), images("mnistmlp")
    assert torch.equal(net.get_grads(), torch.zeros(len(net.get_params())))
    net(x).square().mean().backward()
    by_hand = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.equal(net.get_grads(), by_hand) and float(by_hand.abs().sum()) > 0
    net.set_grads(2 * by_hand)
    assert torch.equal(net.get_grads(), 2 * by_hand)
    assert all(p.grad.shape == p.shape for p in net.parameters())
    net.fc1.weight.grad = None
    assert torch.equal(net.get_grads()[: 784 * 12], torch.zeros(784 * 12))


def test_device_follows_moves_of_a_module_around_it():
    net = build("mnistmlp")
    assert net.device == torch.device("cpu")
    nn.Sequential(net).to("meta")
    assert net.device == torch.device("meta")


def test_num_flat_features():
    assert num_flat_features(torch.zeros(5, 2, 3, 4)) == 24


def test_names_lines_and_flags():
    assert {"resnet18", "resnet34", "reduced-resnet18", "mnistmlp", "timm"} <= set(get_backbone_names())
    assert all(entry.line for entry in registry.index("backbone").values())
    parser = argparse.ArgumentParser()
    signatures.add_backbone_arguments(parser, "timm:vit_tiny_patch16_224")
    assert vars(parser.parse_args([])) == {"pretrained": True}
    assert parser.parse_args(["--pretrained", "0"]).pretrained is False
    assert get_backbone_class("timm:anything") is get_backbone_class(Namespace(backbone="timm"))
    assert get_backbone_class("reduced_resnet18").__name__ == "reduced_resnet18"


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet19", "unknown backbone 'resnet19'. Closest: resnet18"),
        ("resnet18:wide", "does not have variants"),
        ("timm", "needs a name"),
        ("timm:test_vitt", "does not have a model 'test_vitt'. Closest: test_vit"),
        ("timm:test_vit.nowhere", "Invalid pretrained tag"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError) as error:
        build(name, pretrained=False)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_images_of_another_size():
    for name, shape, message in (
        ("timm:test_vit", (3, 32, 32), "takes 3x160x160 images, got 3x32x32"),
        ("resnet18", (1, 28, 28), "3 channels, got 1"),
        ("mnistmlp", (3, 32, 32), "784 values"),
    ):
        with pytest.raises(UserError, match=message):
            build(name)(torch.zeros(1, *shape))


def test_weights_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(UserError, match=r"timm/test_vit.r160_in1k.*--pretrained 0"):
        build("timm:test_vit", pretrained=True)
