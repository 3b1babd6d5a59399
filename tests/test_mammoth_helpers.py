"""The helpers for files written for Mammoth, each against a slow independent form."""

import math
from argparse import ArgumentParser, Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from backbone import MammothBackbone, get_backbone
from models.xder import contrast
from utils import cli, flags
from utils.cli import plugins, registry
from utils.errors import UserError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)


def test_supcon_is_the_sum_over_pairs():
    from utils.simclrloss import SupConLoss

    x, labels, temperature = normalize(torch.randn(4, 2, 5), dim=2), torch.tensor([0, 1, 0, 2]), 0.3
    rows = [(x[i, v], int(labels[i]), i) for v in range(2) for i in range(4)]
    for given, same in (
        ({"labels": labels}, lambda a, b: a[1] == b[1]),
        ({}, lambda a, b: a[2] == b[2]),
        ({"mask": torch.eye(4)}, lambda a, b: a[2] == b[2]),
    ):
        terms = []
        for i, anchor in enumerate(rows):
            others = [row for j, row in enumerate(rows) if j != i]
            below = sum(math.exp(float(anchor[0] @ o[0]) / temperature) for o in others)
            logs = [
                math.log(math.exp(float(anchor[0] @ o[0]) / temperature) / below) for o in others if same(anchor, o)
            ]
            terms.append(-sum(logs) / len(logs) * temperature / 0.5)
        loss = SupConLoss(temperature, base_temperature=0.5, reduction="none")(x, **given)
        assert loss.tolist() == pytest.approx(terms, rel=1e-4)
        assert float(SupConLoss(temperature, "one", 0.5)(x, **given)) == pytest.approx(np.mean(terms[:4]), rel=1e-4)
    single = SupConLoss(1.0, base_temperature=1.0)(normalize(x[:, :1], dim=2), labels)
    assert float(single) == pytest.approx(float(contrast(x[:, 0], labels, 1.0)), rel=1e-5)  # a label alone adds 0
    with pytest.raises(UserError, match="views"):
        SupConLoss()(x[:, 0])


def test_triplets_are_the_hardest_of_each_anchor():
    from utils.triplet import batch_hard_triplet_loss, negative_only_triplet_loss

    x, labels = torch.randn(7, 3, requires_grad=True), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    hardest, nearest = [], []
    for i in range(7):
        gap = [float((x[i] - x[j]).detach().norm()) for j in range(7)]
        positive = max(g for j, g in enumerate(gap) if labels[j] == labels[i] and j != i)
        negative = min(g for j, g in enumerate(gap) if labels[j] != labels[i])
        hardest.append(positive - negative)
        nearest.append(-negative)
    soft = [math.log1p(math.exp(v)) for v in hardest]
    assert float(batch_hard_triplet_loss(labels, x)) == pytest.approx(np.mean(soft), rel=1e-4)
    assert float(batch_hard_triplet_loss(labels, x, 2)) == pytest.approx(np.mean(sorted(soft)[-2:]), rel=1e-4)
    hard = [max(v + 1, 0) for v in nearest]
    assert float(negative_only_triplet_loss(labels, x, 99, 1.0, "hard")) == pytest.approx(np.mean(hard), rel=1e-4)
    twins = torch.cat([x[:1], x[:1]])  # equal rows, no other label: a finite zero
    loss = batch_hard_triplet_loss(torch.tensor([0, 0]), twins) + negative_only_triplet_loss(
        torch.tensor([0, 1]), twins
    )
    loss.backward()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(UserError, match="soft or hard"):
        batch_hard_triplet_loss(labels, x, margin_type="other")


def test_similarity_preserving_distillation():
    from utils.spkdloss import SPKDLoss

    teacher, student = torch.randn(4, 3, 2), torch.randn(4, 7)
    grams = []
    for f in (teacher.reshape(4, 6), student):
        gram = [[float(f[i] @ f[j]) for j in range(4)] for i in range(4)]
        grams.append([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in gram])
    want = sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(4) for j in range(4))
    assert float(SPKDLoss()(teacher, student)) == pytest.approx(want / 16, rel=1e-4)
    assert float(SPKDLoss("sum")(teacher, student)) == pytest.approx(want, rel=1e-4)
    assert float(SPKDLoss()(student, 3 * student @ torch.linalg.qr(torch.randn(7, 7))[0])) < 1e-10  # turned and scaled


def test_mixup_keeps_images_and_labels_in_step():
    from utils.mixup import mixup

    x, y = torch.eye(6), torch.arange(6)
    mixed, a, b, share = mixup(x, y, 0.7)
    assert torch.allclose(mixed, share * nn.functional.one_hot(a, 6) + (1 - share) * nn.functional.one_hot(b, 6))
    assert torch.equal(a, y) and not torch.equal(a, b) and sorted(b.tolist()) == y.tolist()
    first, second = (
        (torch.zeros(3, 2), torch.tensor([1.0, 0]).expand(3, 2)),
        (torch.ones(3, 2), torch.tensor([0, 1.0]).expand(3, 2)),
    )
    for _ in range(5):
        image, label = mixup([first, second], alpha=0.5)
        assert torch.allclose(label[:, 1], image[:, 0]) and 0 <= float(image[0, 0]) <= 0.5
    assert mixup(x, y, 0.0)[3] == 1.0


def test_beta_mixture_finds_the_two_parts():
    from utils.bmm import BetaMixture1D

    low, high = np.random.beta(2, 10, 3000), np.random.beta(10, 3, 1000)
    values = np.concatenate([low, high])
    mixture = BetaMixture1D(max_iters=30).fit(values)
    assert mixture.weight == pytest.approx([0.75, 0.25], abs=0.03)
    means = mixture.alphas / (mixture.alphas + mixture.betas)
    assert means == pytest.approx([2 / 12, 10 / 13], abs=0.02)
    right = (mixture.predict(values) == np.repeat([0, 1], [3000, 1000])).mean()
    assert right > 0.97
    middles = (np.arange(2000) + 0.5) / 2000
    assert mixture.probability(middles).mean() == pytest.approx(1, abs=0.01)  # a density
    mixture.create_lookup(1)
    grid = mixture.look_lookup(np.array([2.0, 3.0, 6.0]), loss_max=6.0, loss_min=2.0)
    assert grid[0] < 0.05 < 0.95 < grid[2] and grid[0] <= grid[1] <= grid[2]
    one = BetaMixture1D(max_iters=1).fit([0.1, 0.3, 0.8])  # one step by hand
    start = np.array([[a * (1 - v) if k else a * v for v in (0.1, 0.3, 0.8)] for k, a in ((0, 1), (1, 1))])
    start /= start.sum(0)  # Beta(1, 2) is 2 (1 - v), Beta(2, 1) is 2 v
    share = start[::-1][0]
    mean = (share * [0.1, 0.3, 0.8]).sum() / share.sum()
    assert one.alphas[0] / (one.alphas[0] + one.betas[0]) == pytest.approx(mean) and one.weight[0] == pytest.approx(
        share.mean()
    )
    with pytest.raises(UserError, match="finite"):
        mixture.fit([0.1, float("nan")])


def test_conditional_batch_norm_scales_by_class():
    from utils.conditional_bn import ConditionalBatchNorm1d, ConditionalBatchNorm2d

    y = torch.tensor([0, 1, 1, 2, 0])
    for layer, x in (
        (ConditionalBatchNorm1d(3, 4), torch.randn(5, 3)),
        (ConditionalBatchNorm2d(3, 4), torch.randn(5, 3, 2, 2)),
    ):
        with torch.no_grad():
            layer.scale.weight.normal_()
            layer.shift.weight.normal_()
        axes = [0, *range(2, x.dim())]
        unit = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
        out = layer(x, y)
        for i, c in enumerate(y.tolist()):
            for k in range(3):
                want = layer.scale.weight[c, k] * unit[i, k] + layer.shift.weight[c, k]
                assert torch.allclose(out[i, k], want, atol=1e-4)


def test_locals_of_the_last_call_stay():
    from utils.magic import persistent_locals

    class Thing:
        @persistent_locals
        def observe(self, x, deep=1):
            """Doc."""
            loss_a = 2 * x
            if deep:
                self.observe(0, deep=0)
            return loss_a + 1

    thing = Thing()
    assert thing.observe(5) == 11 and thing.observe.locals["loss_a"] == 10 and thing.observe.__doc__ == "Doc."
    thing.observe.clear_locals()
    assert Thing.observe.locals == {}


def test_lipschitz_is_the_largest_eigenvalue():
    from models.utils.lider_model import LiderOptimizer, add_lipschitz_args, lipschitz

    before, after = torch.rand(6, 3, 4, requires_grad=True), torch.rand(6, 20)  # as after a ReLU: one direction leads
    left, right = normalize(before.flatten(1), dim=1), normalize(after, dim=1)
    want = torch.linalg.matrix_norm(left.T @ right / 6, 2) ** 2
    assert float(lipschitz(before, after)) == pytest.approx(float(want), rel=1e-3)
    exact = torch.autograd.grad(want, before)[0]
    assert torch.allclose(torch.autograd.grad(lipschitz(before, after), before)[0], exact, atol=1e-4)
    wide = torch.randn(6, 12, requires_grad=True)  # no direction leads, so ten iterations leave a rest
    slopes = [torch.autograd.grad(lipschitz(wide, after - 0.5, k), wide)[0] for k in (0, -10, -2)]
    assert torch.equal(slopes[0], slopes[1]) and not torch.equal(slopes[0], slopes[2])

    parser = ArgumentParser()
    add_lipschitz_args(parser)
    args = parser.parse_args([])
    assert (args.alpha_lip_lambda, args.beta_lip_lambda, args.headless_init_act, args.grad_iter_step) == (
        0,
        0,
        "relu",
        -2,
    )
    lider = LiderOptimizer.__new__(LiderOptimizer)
    nn.Module.__init__(lider)
    lider.args, lider.net = args, nn.Linear(2, 2)
    maps = [torch.randn(4, 3, 2), torch.randn(4, 5), torch.randn(4, 2)]
    constants = [float(lipschitz(a, b)) for a, b in ((maps[0], maps[1]), (maps[1], maps[2]))]
    assert float(lider.minimization_lip_loss(maps)) == pytest.approx(np.mean(constants), rel=1e-5)
    with pytest.raises(UserError, match="init_net"):
        lider.dynamic_budget_lip_loss(maps)
    lider.net.lip_coeffs = nn.Parameter(torch.tensor([0.2, -1.0]))
    budget = (abs(constants[0] - 0.2) + constants[1]) / 2
    assert float(lider.dynamic_budget_lip_loss(maps)) == pytest.approx(budget, rel=1e-5)
    args.headless_init_act = "lrelu"
    assert float(lider.dynamic_budget_lip_loss(maps)) == pytest.approx(budget + 0.005, rel=1e-5)
    with pytest.raises(UserError, match="feature map"):
        lider.minimization_lip_loss(maps[:1])


def small_vit(**more):
    from backbone.vit import create_vision_transformer

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return create_vision_transformer("vit_base_patch16_224", **sizes | more).eval()


def test_vit_is_timms():
    from timm.models import vision_transformer

    net, x = small_vit(qkv_bias=True), torch.randn(3, 3, 16, 16)
    theirs = vision_transformer.VisionTransformer(16, 8, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()
    theirs.load_state_dict(net.state_dict())
    assert torch.allclose(net(x), theirs(x), atol=1e-5) and isinstance(net, MammothBackbone)
    out, features = net(x, returnt="both")
    full = net(x, returnt="full")
    assert torch.equal(features, net.features(x)) and torch.equal(full[0], out) and len(full[1]) == 2
    assert torch.allclose(net.head(net.norm(full[1][-1])[:, 0]), out, atol=1e-6)
    net.classifier = nn.Linear(16, 7)
    assert net(x).shape == (3, 7) and net.head is net.classifier and "classifier.weight" not in net.state_dict()
    net(x).sum().backward()
    assert (
        len(net.get_params()) - len(net.get_params(discard_classifier=True))
        == 17 * 7
        == len(net.get_grads()) - len(net.get_grads(True))
    )


def test_low_rank_terms_are_added_to_the_weights():
    from backbone.vit import LoRAAttention

    net, x = small_vit(), torch.randn(3, 3, 16, 16)
    plain, terms = net(x), {"qkv": (48, 16), "proj": (16, 16), "fc1": (64, 16), "fc2": (16, 64)}
    AB = {1: {k: {"B": torch.randn(o, 2), "A": torch.randn(2, i)} for k, (o, i) in terms.items()}}
    out = net(x, AB)
    block = net.blocks[1]
    layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight += AB[1][name]["B"] @ AB[1][name]["A"]
    assert torch.allclose(out, net(x), atol=1e-4) and not torch.allclose(out, plain, atol=1e-2)
    attention, tokens = LoRAAttention(16, 2), torch.randn(3, 4, 16)
    own = torch.randn(3, 16, 16)  # a term for each sample
    each = torch.cat([attention(t[None], {"proj": m}) for t, m in zip(tokens, own, strict=True)])
    assert torch.allclose(attention(tokens, {"proj": own}), each, atol=1e-5)
    with pytest.raises(UserError, match="qk_norm"):
        small_vit(qk_norm=True)


def test_vit_by_name_and_what_is_refused(monkeypatch):
    from backbone import vit

    assert registry.index("backbone")["vit"].line and "vit" in cli.listing("backbones")
    with pytest.raises(UserError, match="vit_base_patch16_224"):
        vit.create_vision_transformer("resnet18")
    with pytest.raises(UserError, match="in21k_old"):
        vit.vit_base_patch16_224_prompt_prototype(pretrain_type="dino")
    like = small_vit(num_classes=0)
    monkeypatch.setattr("backbone.timm_model.timm_model", lambda *a: Namespace(net=like))
    net = small_vit(pretrained=True)
    assert torch.equal(net.patch_embed.proj.weight, like.patch_embed.proj.weight) and net.head.out_features == 5
    with pytest.raises(UserError, match="do not fit"):
        small_vit(pretrained=True, depth=1)
    monkeypatch.setitem(vit.SIZES, "base", (12, 1, 2))
    built = get_backbone(Namespace(backbone="vit", num_classes=3, pretrained=False, pretrain_type="in21k"))
    assert built.head.out_features == 3 and built.patch_embed.img_size == (224, 224)


def test_progressive_columns_read_the_old_ones_and_leave_them_alone():
    from backbone.MNISTMLP import MNISTMLP
    from backbone.MNISTMLP_PNN import MNISTMLP_PNN
    from backbone.ResNet18_PNN import resnet18_pnn
    from backbone.ResNetBlock import resnet18

    first = MNISTMLP(6, 4, 5)
    assert (first.input_size, first.output_size) == (6, 4)
    columns, x = [first, MNISTMLP_PNN(6, 4, [first], 5)], torch.randn(3, 6)
    columns.append(MNISTMLP_PNN(6, 4, columns, 5))
    new = columns[-1]
    new(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters()) and all(p.grad is None for p in first.parameters())
    old = [
        (h := c.fc1(x).relu(), (c.fc2(h) + (c.laterals[0]([columns[0].fc1(x).relu()]) if c is not first else 0)).relu())
        for c in columns[:2]
    ]
    both = new.laterals[0]
    mixed = torch.cat([both.alphas[k].alpha * old[k][0] for k in range(2)], 1)
    second = (new.fc2(new.fc1(x).relu()) + both.expand(both.reduce(mixed).relu())).relu()
    assert torch.allclose(new(x), new.classifier(second) + new.laterals[1]([h for _, h in old]), atol=1e-5)

    base = resnet18(4, 2)
    assert (base.num_classes, base.nf) == (4, 2)
    image, column = torch.randn(2, 3, 16, 16), resnet18_pnn(4, 2, [base], (2, 3, 16, 16))
    third = resnet18_pnn(4, 2, [base, column])
    assert third(image).shape == (2, 4)
    third(image).sum().backward()
    assert all(p.grad is not None for p in third.parameters())
    alone = resnet18_pnn(4, 2)
    base.load_state_dict(alone.state_dict())
    assert torch.allclose(alone.eval()(image), base.eval()(image))
    with pytest.raises(UserError, match="only returnt 'out'"):
        third(image, returnt="full")


def test_a_classifier_that_grows_keeps_its_rows():
    from backbone.utils.layers import IncrementalClassifier
    from backbone.utils.modules import AlphaModule, ListModule

    head, x = IncrementalClassifier(4, 2), torch.randn(3, 4)
    before = head(x)
    head.adapt(5)
    head.adapt(3)
    assert head(x).shape == (3, 5) and torch.allclose(head(x)[:, :2], before)
    parts = ListModule(AlphaModule(4), AlphaModule((1,)))
    assert torch.equal(parts[0](x), x * parts[0].alpha) and len(list(parts.parameters())) == 2


def test_templates_by_the_names_of_data_sets():
    from utils.prompt_templates import templates

    assert templates["cifar10"] == templates["cifar100"] and len(templates["cifar100"]) == 18
    assert templates["seq-eurosat-rgb"] == templates["eurosat"] and all(
        "{}" in t for lists in templates.values() for t in lists
    )
    with pytest.raises(UserError, match="does not have a list 'chestx'"):
        templates["chestx"]


def test_held_out_part_and_no_download():
    from datasets.utils.hf_download import fetch_it
    from datasets.utils.validation import get_train_val

    class Items:
        data, targets, transform = np.arange(40)[:, None], list(range(40)), "train"

    train, held = get_train_val(Items(), "test", "toys", 0.25)
    assert (train.transform, held.transform) == ("train", "test") and len(held.targets) == 10 == len(held.data)
    assert sorted([*train.targets, *held.targets]) == list(range(40)) and held.data[:, 0].tolist() == held.targets
    assert (
        held.targets
        == get_train_val(Items(), None, "toys", 0.25)[1].targets
        != get_train_val(Items(), None, "x", 0.25)[1].targets
    )
    with pytest.raises(UserError, match="fetch_it owner/files a: nothing is downloaded automatically"):
        fetch_it("owner/files", folder="a")
    with pytest.raises(UserError, match="between 0 and 1"):
        get_train_val(Items(), None, "toys", 10)


def test_refused_flags_read_as_off_and_are_no_values():
    args = cli.parse(["--model", "sgd", "--dataset", "seq-tiny", "--lr", "0.1"]).args
    assert args.distributed == "no" and args.nowand == 1 and all(hasattr(args, name) for name in flags.REFUSED)
    assert not set(vars(args)) & {*flags.REFUSED, "nowand"}


def test_a_checkouts_own_module_comes_before_ours(tmp_path):
    import utils.triplet

    assert "mammoth" in utils.triplet.__file__
    for folder, text in (
        ("utils", "WHOSE = 'theirs'\n"),
        ("models", "from utils.triplet import WHOSE\n\n\nclass M:\n    NAME = 'whose'\n    COMPATIBILITY = []\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ("triplet.py" if folder == "utils" else "whose.py")).write_text(text)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "vit.py").write_text(
        "from backbone import register_backbone\n\n\n@register_backbone('vit')\ndef vit(num_classes):\n"
        '    """Theirs"""\n    return 7\n'
    )
    plugins.use([str(tmp_path)])
    try:
        assert registry.load("model", "whose").NAME == "whose"
        assert registry.index("backbone")["vit"].line.startswith("Theirs")
        assert get_backbone(Namespace(backbone="vit", num_classes=3)) == 7
    finally:
        plugins.use(None)
    from utils.triplet import batch_hard_triplet_loss

    assert batch_hard_triplet_loss and registry.index("backbone")["vit"].line.startswith("ViT-B/16")
