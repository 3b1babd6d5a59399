"""The second stage of STAR-Prompt: routing and shifts by loops, gradients, what a task trains, the head's alignment."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy, normalize

from backbone.prompted_vit import PromptedTimm
from models.utils import value_prompts
from tests import contract
from tests.test_prompt_baselines import begun

SMALL = {"n_epochs": 1}
NAMES = ["second-stage-starprompt", "starprompt"]


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def grown(tasks: int = 2, **flags):
    """A model at the start of its `tasks`-th second stage, with vectors that matter."""
    toy = begun("second-stage-starprompt", tasks=tasks, **SMALL, **flags)
    toy.model.grow_second_stage(toy.dataset.train_loader.dataset)
    torch.manual_seed(3)
    for own in (*toy.model.P, *toy.model.A):
        own.data.normal_()
    return toy


def test_the_nearest_class_shifts_the_values_by_its_similarity():
    model = grown().model
    query = torch.randn(4, model.net.embed_dim)
    A, P = torch.cat(list(model.A), 1).detach(), torch.cat(list(model.P), 1).detach()
    for modulated in (True, False):
        model.args.enable_confidence_modulation = modulated
        found = model.shifts(query)
        for layer in range(2):
            for b in range(4):
                near = [
                    float(5 * normalize(query[b] * A[layer, c].softmax(0), dim=0) @ model.written[c]) for c in range(5)
                ]
                best = max(range(5), key=near.__getitem__)
                wanted = P[layer, best] * (near[best] if modulated else 1.0)
                torch.testing.assert_close(found[layer, b], wanted, atol=1e-4, rtol=1e-3)


def test_a_uniform_filter_routes_as_clip_does_and_no_vector_is_the_plain_network():
    model = grown().model
    for own in model.A:
        own.data.zero_()
    query, images = torch.randn(6, model.net.embed_dim), torch.randn(6, 3, 48, 48)
    best = (normalize(query, dim=1) @ model.written[:5].T).max(1)
    P = torch.cat(list(model.P), 1).detach()
    wanted = 5 * best.values[:, None] * P[0, best.indices]
    torch.testing.assert_close(model.shifts(query)[0], wanted, atol=1e-4, rtol=1e-3)
    for own in model.P:
        own.data.zero_()
    torch.testing.assert_close(model.states(images, query), model.net.tower(images), atol=1e-4, rtol=1e-4)


def test_classes_that_are_not_nearest_get_no_gradient():
    model = grown().model
    query = torch.randn(3, model.net.embed_dim)
    model.A[0].requires_grad_(True), model.P[0].requires_grad_(True)
    model.shifts(query)[0].sum().backward()
    A = torch.cat([own.grad for own in model.A], 1)[0]
    near = 5 * value_prompts.attended_cosines(query, torch.cat(list(model.A), 1).softmax(-1), model.written[:5])
    chosen = set(near[:, 0].argmax(1).tolist())
    moved = {c for c in range(5) if A[c].abs().max() > 0}
    assert moved == chosen and len(chosen) < 5


def test_the_pull_by_hand():
    model = grown().model
    wanted = 0.0
    for layer in range(model.net.tower.n_layers):
        new, past = model.P[1][layer].detach(), model.P[0][layer].detach()
        lengths = [(float(p @ p) - 1) ** 2 for p in new]
        products = [float(p @ q) ** 2 for p in new for q in past]
        wanted += sum(lengths) / 2 + sum(products) / 6
    assert float(model.pull().detach()) == pytest.approx(wanted / model.net.tower.n_layers, rel=1e-4)
    assert grown(tasks=1).model.pull() == 0.0


def test_a_task_trains_its_own_vectors_and_filters():
    toy = grown(tasks=2, lambda_ortho_second_stage=0.5)
    model = toy.model
    before = [own.detach().clone() for own in (*model.P, *model.A)]
    images, labels = next(iter(toy.dataset.train_loader))[:2]
    query = model.encode(images)
    logits = model.head(model.states(images, query))[:, 3:]
    wanted = cross_entropy(logits, labels - 3) + 0.5 * model.pull()
    assert float(model.second_step(images, labels, query)) == pytest.approx(float(wanted.detach()), rel=1e-4)
    moved = [not torch.equal(a, b) for a, b in zip(before, (*model.P, *model.A), strict=True)]
    assert moved == [False, True, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_the_alignment_is_of_a_copy_and_not_after_the_first_task(name, monkeypatch):
    toy = begun(name, tasks=1, num_epochs_gr_second_stage=0, **SMALL)
    model = toy.model
    model.meta_end_task(toy.dataset)
    assert model.aligned is None and model.features.classes == [0, 1, 2]
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    steps = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda opt, *a: steps.append(1) or real(opt, *a))
    model.end_task(toy.dataset)
    assert model.work_done["head"] == 5, "5 epochs more for each task before"
    assert not torch.equal(model.aligned.weight, model.head.weight) and len(model.aligned.answers) == 5
    x = contract.images_of(toy)[0][:2]
    wanted = model.aligned(model.states(x, model.encode(x)))
    torch.testing.assert_close(model(x)[:, model.head.answers], wanted, atol=1e-4, rtol=1e-3)


def test_keys_of_the_second_stage_are_those_learned_in_the_first():
    toy = contract.run("starprompt", stop_after=0)
    model = toy.model
    model.forward(contract.images_of(toy)[0][:1])
    assert torch.equal(model.class_keys(), model.seen_keys()) and len(model.class_keys()) == 3
    assert not torch.allclose(model.class_keys(), model.written[:3], atol=1e-3)
    every = model.future_forward(contract.images_of(toy)[0][:2])
    query = model.encode(contract.images_of(toy)[0][:2])
    torch.testing.assert_close(every[:, 3:], model.logits(query, model.written[3:]))


def test_a_vit_of_timm_is_prompted(monkeypatch):
    asked = []

    def made(which, pretrained):
        asked.append((which, pretrained))
        net = VisionTransformer(img_size=48, patch_size=24, embed_dim=12, depth=3, num_heads=3, num_classes=0)
        return PromptedTimm(net, which).eval().requires_grad_(False)

    monkeypatch.setattr(value_prompts, "prompted_timm", made)
    toy = contract.run("second-stage-starprompt", vit="timm:toy", vit_pretrained=0, stop_after=1)
    assert asked == [("timm:toy", False)] and toy.model.P[0].shape == (3, 3, 12)
    assert contract.logits(toy)[:, :5].isfinite().all()


def test_past_rows_are_frozen():
    model = grown().model
    assert [own.requires_grad for own in (*model.P, *model.A)] == [False, True, False, True]
