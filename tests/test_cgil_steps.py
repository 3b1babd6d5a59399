"""CGIL's fit, epoch and steps against plain loops written from the equations, one feature and one prompt at a time."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.test_cgil import build, folder, train  # noqa: F401 (fixtures)
from utils.errors import UserError

SPREAD = 1e-4  # of the generators that a test puts in place: a sample identifies its class
FORMS = {
    "combo": {},
    "V_c": {"combo_context": False, "n_context": 2},
    "V": {"combo_context": False, "general_context": 1, "n_context": 2},
    "g": {"combo_context": False, "generated_context": True},
}


def layer_norm(norm, x):
    """In float64, where CLIP's own goes through float32."""
    return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


class Oracle:
    """Prompts, keys and losses in float64 from the weights alone: the context comes first, then CLIP's text tower."""

    def __init__(self, model):
        self.clip = copy.deepcopy(model.net.clip).double().requires_grad_(False)
        self.names, self.tokenize, self.args = model.dataset.get_class_names(), model.net.tokenize, model.args
        self.V = model.V.detach().double().clone().requires_grad_() if model.has_v else None
        self.g = [p.detach().double().clone().requires_grad_() for p in model.g.parameters()] if model.has_g else []
        self.written = [self.read(self.embed(f"a photo of a {name}"))[0] for name in self.names]

    def embed(self, text):
        tokens = self.tokenize([text])[0]
        return self.clip.token_embedding(tokens), int(tokens.argmax())

    def read(self, prompt):
        """The tower over all positions, (1, D)."""
        embeds, end = prompt
        clip, length = self.clip, len(embeds)
        x = (embeds + clip.positional_embedding[:length])[:, None]
        mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
        for block in clip.transformer.resblocks:
            h = layer_norm(block.ln_1, x)
            x = x + block.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
            x = x + block.mlp(layer_norm(block.ln_2, x))
        return layer_norm(clip.ln_final, x[end]) @ clip.text_projection

    def made_by_g(self, feature):
        """Linear, then three times a learned scale and shift over sqrt(1 + 1e-5) and SELU, and a linear layer last."""
        x, p = feature, self.g
        for i in range(3):
            weight, bias, scale, shift = p[4 * i : 4 * i + 4]
            x = nn.functional.selu((weight @ x + bias) / math.sqrt(1 + 1e-5) * scale + shift)
        return p[12] @ x + p[13]

    def key(self, c, image=None):
        """Unit key of class c: [start][V_c][g(t_c)][name.][end]; g reads the image where there is one."""
        shared = self.args.general_context and not self.args.combo_context
        context = [] if self.V is None else list(self.V[0 if shared else c])
        if self.g:
            context.append(self.made_by_g(self.written[c] if image is None else image))
        embeds, end = self.embed(f"{' '.join('X' for _ in context)} {self.names[c]}.")
        embeds = torch.cat([embeds[:1], torch.stack(context), embeds[1 + len(context) :]])
        key = self.read((embeds, end))[0]
        return key / key.norm()

    def loss(self, features, labels, n, own_prompts=False, fixed=0):
        """Mean over images of -log softmax of exp(logit_scale) cos(x, key_c) over the n classes seen."""
        scale, total = float(self.clip.logit_scale.exp()), 0.0
        keys = None if own_prompts else [self.key(c).detach() if c < fixed else self.key(c) for c in range(n)]
        for x, y in zip(features, labels, strict=True):
            x = x.double() / x.double().norm()
            own = [self.key(c, x) for c in range(n)] if own_prompts else keys
            logits = torch.stack([scale * (x @ k) for k in own])
            total = total - (logits[y] - logits.exp().sum().log())
        return total / len(features)

    def step(self, loss, lr):
        """Gradient descent on what is trained."""
        trained = ([self.V] if self.V is not None else []) + self.g
        for p, d in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= lr * d

    def gap(self, model):
        pairs = [(self.V, model.V)] if self.V is not None else []
        pairs += list(zip(self.g, model.g.parameters(), strict=True)) if self.g else []
        return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def far_apart(model):
    """Gaussian generators whose classes lie on different axes, almost without spread: a sample shows its class."""
    n, dim = model.n_seen_classes, model.net.embed_dim
    model.generator.rows = {"mean": 3 * torch.eye(n, dim), "std": torch.full((n, dim), SPREAD)}
    model.generator.row_class, model.generator.row_count = list(range(n)), [1] * n


def watched(model, monkeypatch):
    """What each step of alignment is given."""
    seen, real = [], model.align_step
    monkeypatch.setattr(model, "align_step", lambda x, y: (seen.append((x.clone(), y.clone())), real(x, y))[1])
    return seen


def test_generators_are_fitted_on_the_training_images_of_each_class(build):  # noqa: F811
    model, dataset = build(g_models="gauss", num_epochs_alignment=0)
    train(model, dataset, 2)
    for c in range(5):
        split = dataset.load(train=True)
        images = split.data[split.targets == c]
        rows = torch.stack([model.net.encode_image(model.net.normalize_images(image[None]))[0] for image in images])
        mean = sum(rows) / len(rows)
        spread = (sum((row - mean) ** 2 for row in rows) / (len(rows) - 1)).sqrt()
        place = model.generator.row_class.index(c)
        torch.testing.assert_close(model.generator.rows["mean"][place], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.generator.rows["std"][place], spread, atol=1e-4, rtol=1e-3)
        assert model.generator.row_count[place] == len(images) == 5 + c


def test_an_epoch_replays_all_seen_classes_with_their_own_labels(build, monkeypatch):  # noqa: F811
    model, dataset = build(g_models="gauss", num_epochs_alignment=0, batch_size_alignment=100)
    train(model, dataset, 2)
    far_apart(model)
    model.align_opt = model.alignment_optimizer()
    seen = watched(model, monkeypatch)
    model.align_epoch()
    first = len(seen)
    model.align_epoch()
    assert first == 13 and [len(y) for _, y in seen[:first]] == [100] * 12 + [80], "5 x 256, the last batch is kept"
    epochs = [[torch.cat(part) for part in zip(*steps, strict=True)] for steps in (seen[:first], seen[first:])]
    for x, y in epochs:
        assert torch.equal(x[:, :5].argmax(1), y), "a label is the class of the generator that drew the sample"
        assert torch.bincount(y).tolist() == [256] * 5
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
        assert len(y[:100].unique()) == 5 and (y.diff() != 0).float().mean() > 0.5, "in random order"
    assert len(torch.cat([x for x, _ in epochs]).unique(dim=0)) == 2 * 5 * 256, "drawn anew in each epoch"


@pytest.mark.parametrize("form", FORMS)
def test_alignment_against_a_loop(build, form, monkeypatch):  # noqa: F811
    """An epoch of gradient descent, features as replayed, labels read off the features."""
    flags = {"batch_size_alignment": 600, "optim_alignment": "sgd", "learning_rate_alignment": 0.05}
    model, dataset = build(g_models="gauss", num_epochs_alignment=0, **flags, **FORMS[form])
    train(model, dataset, 2)
    far_apart(model)
    model.generator.rows["std"].fill_(0.2)
    slow, seen = Oracle(model), watched(model, monkeypatch)
    model.align_opt = model.alignment_optimizer()
    model.align_epoch()
    before = slow.gap(model)
    for x, _ in seen:
        slow.step(slow.loss(x, x[:, :5].argmax(1), 5), 0.05)
    assert len(seen) == 3 and before > 1e-3 and slow.gap(model) < 2e-5


@pytest.mark.parametrize("all_names", [False, True])
def test_with_current_prompts_alone_past_names_teach_g_or_not(build, all_names):  # noqa: F811
    """The released code makes past keys without gradient: g learns from the names of the task."""
    flags = {"train_only_current_prompts": True, "past_names_train_g": all_names, "optim_alignment": "sgd"}
    model, dataset = build(num_epochs_alignment=0, learning_rate_alignment=0.05, **flags)
    train(model, dataset, 2)
    with torch.no_grad():
        model.V[5:] = 7.0
    model.align_opt, slow = model.alignment_optimizer(), Oracle(model)
    start = model.V.detach().clone()
    x = normalize(torch.randn(12, model.net.embed_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    for _ in range(4):
        loss = slow.loss(x, torch.arange(12) % 5, 5, fixed=0 if all_names else 2)
        assert float(model.align_step(x, torch.arange(12) % 5)) == pytest.approx(float(loss.detach()), rel=1e-4)
        slow.step(loss, 0.05)
        slow.V.data[:2] = start[:2].double()  # V_c of past classes stay
    assert torch.equal(model.V[:2], start[:2]) and torch.equal(model.V[5:], start[5:])
    assert slow.gap(model) < 2e-5


@pytest.mark.parametrize("chunk", [0, 5])
def test_prompts_made_by_images_against_a_loop(build, chunk):  # noqa: F811
    form = {"combo_context": False, "generated_context": True, "cocoop": True, "align_chunk": chunk}
    model, dataset = build(num_epochs_alignment=0, optim_alignment="sgd", learning_rate_alignment=0.05, **form)
    train(model, dataset, 1)
    model.align_opt, slow = model.alignment_optimizer(), Oracle(model)
    x = normalize(torch.randn(6, model.net.embed_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = slow.loss(x, torch.arange(6) % 2, 2, own_prompts=True)
    assert float(model.align_step(x, torch.arange(6) % 2)) == pytest.approx(float(loss.detach()), rel=1e-5)
    slow.step(loss, 0.05)
    assert slow.gap(model) < 1e-5


def test_a_step_of_adamw_by_hand(build):  # noqa: F811
    """Decay first, then lr m / (sqrt(v) + 1e-8) with the first step's corrections: the sign of the gradient."""
    flags = {"optim_alignment": "adamw", "learning_rate_alignment": 0.01, "optim_alignment_wd": 0.5}
    model, dataset = build(num_epochs_alignment=0, combo_context=False, **flags)
    train(model, dataset, 2)
    model.align_opt, slow = model.alignment_optimizer(), Oracle(model)
    x, y = (
        normalize(torch.randn(10, model.net.embed_dim, generator=torch.Generator().manual_seed(0)), dim=1),
        torch.arange(10) % 5,
    )
    (d,) = torch.autograd.grad(slow.loss(x, y, 5), [slow.V])
    model.align_step(x, y)
    moved = (1 - 0.01 * 0.5) * slow.V.detach() - 0.01 * d / (d.abs() + 1e-8)
    sure = d.abs() > 1e-5  # elsewhere rounding decides the sign
    assert sure[:5].float().mean() > 0.9 and not sure[5:].any()
    torch.testing.assert_close(model.V.detach().double()[sure], moved[sure], atol=2e-5, rtol=0)


def test_flags_of_the_loop_are_refused(capsys):
    """All work is at the end of a task: what only the loop reads would change nothing."""
    import main

    base = ["--model", "cgil", "--dataset", "seq-tiny", "--clip_backbone", "tiny", "--show_config"]
    wanted = {
        "lr": ("0.3", "learning_rate_alignment"),
        "n_epochs": ("7", "num_epochs_alignment"),
        "optimizer": ("adam", "optim_alignment"),
        "batch_size": ("5", "batch_size_alignment"),
        "optim_mom": ("0.9", "leave the flag out"),
        "lr_scheduler": ("cosine", "leave the flag out"),
    }
    for flag, (value, instead) in wanted.items():
        assert main.main([*base, f"--{flag}", value]) == 2
        said = capsys.readouterr().err.strip()
        assert f"--{flag} changes nothing with cgil" in said and instead in said and "\n" not in said
    assert main.main([*base, "--learning_rate_alignment", "0.3"]) == 0


def test_what_cannot_be_combined_is_refused(build):  # noqa: F811
    with pytest.raises(UserError, match="past_names_train_g"):
        build(past_names_train_g=True)
    with pytest.raises(UserError, match="only used by --optim_alignment adamw"):
        build(optim_alignment="sgd", optim_alignment_wd=0.1)


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_step_copies_nothing_to_the_device(build, chunk, monkeypatch):  # noqa: F811
    """The meta device replaces a GPU: no step passes a CPU tensor to an operation, which would have to wait for it."""
    monkeypatch.setattr("backbone.prompts.BUCKET", 2)  # several groups of prompts
    model, dataset = build(num_epochs_alignment=0, optim_alignment="sgd", align_chunk=chunk)
    train(model, dataset, 2)
    model.to("meta")
    model.align_opt = model.alignment_optimizer()
    x, y = torch.randn(8, model.net.embed_dim, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
    model.align_step(x, y)  # finds the groups
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            leaves = tree_leaves((args, kwargs))
            if any(isinstance(t, torch.Tensor) and t.device.type == "cpu" and t.dim() for t in leaves):
                found.append(operation)
            return operation(*args, **kwargs or {})

    with Watch():
        model.align_step(x, y)
    assert not found


@pytest.mark.parametrize("replay", ["all", "current"])
def test_replay_of_the_task_alone_takes_as_many_samples(replay, build):  # noqa: F811
    model, dataset = build(g_models="gauss", num_epochs_alignment=0, replay=replay)
    train(model, dataset, 2)
    far_apart(model)
    past = model.n_past_classes
    own = [c for c in range(model.n_seen_classes) if replay == "all" or c >= past]
    features, found = model.replay()
    assert found.unique().tolist() == own and len(found) == len(features)
    assert abs(len(found) - 256 * model.n_seen_classes) < len(own)
    assert torch.equal(features.argmax(1), found)  # each sample lies on the axis of its own class


def test_real_features_are_drawn_as_they_are(build):  # noqa: F811
    """Of classes with different numbers of images: every image of the class, about equally often, and no padding."""
    model, dataset = build(g_models="real", num_epochs_alignment=0)
    train(model, dataset, 2)
    drawn = model.generator.sample(torch.arange(5), 2000)
    for c in range(5):
        place = model.generator.row_class.index(c)
        n = model.generator.row_count[place]
        kept = model.generator.rows["mean"][place][:n]
        counts = (drawn[c][:, None] == kept[None]).all(2).sum(0)
        assert counts.sum() == 2000 and (counts - 2000 / n).abs().max() < 5 * (2000 / n) ** 0.5
