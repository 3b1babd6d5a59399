"""EASE: synthesized prototypes and weighted subspaces by loops, what a task may change."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from models.ease import synthesized
from tests import contract
from tests.test_prompt_baselines import begun


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def test_old_prototypes_are_mixtures_of_the_new_classes():
    torch.manual_seed(0)
    own, there, here = torch.randn(3, 5), torch.randn(3, 4, 5), torch.randn(4, 5)
    found = synthesized(own, there, here)
    for o in range(3):
        shares = torch.stack([torch.cosine_similarity(own[o], there[o, j], dim=0) for j in range(4)]).exp()
        wanted = sum(s * q for s, q in zip(shares / shares.sum(), here, strict=True))
        torch.testing.assert_close(found[o], wanted)
    same = here[:1].expand(4, 5)
    torch.testing.assert_close(synthesized(own, there, same), same[:3])


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        toy = contract.build("ease")
        for task in range(3):  # adapters that differ as trained ones do, and more
            toy.dataset.get_data_loaders()
            toy.model.meta_begin_task(toy.dataset)
            torch.manual_seed(task)
            for p in toy.model.adapters[task].parameters():
                p.data += 0.2 * torch.randn_like(p)
            toy.model.meta_end_task(toy.dataset)
        yield toy


def test_prototypes_are_means_under_every_adapter_set(toy):
    model = toy.model
    assert model.prototypes.shape == (3, 9, model.width) and model.owner.tolist() == [0] * 3 + [1] * 2 + [2] * 4
    sums, counts = torch.zeros(3, model.width), torch.zeros(9)
    with torch.no_grad():
        for images, labels in model.plain_pass(toy.dataset):  # of the last task
            for s, own in enumerate(model.adapters):
                states = model.states(images, edits=own.edits())
                sums[s] += states[labels == 7].sum(0)
            counts += labels.bincount(minlength=9)
    torch.testing.assert_close(model.prototypes[:, 7], sums / counts[7], atol=1e-4, rtol=1e-3)
    for old in (1, 4):
        s = int(model.owner[old])
        cosines = cosine_similarity(model.prototypes[s, old][None], model.prototypes[s, 5:9], dim=1)
        wanted = (cosines.softmax(0)[:, None] * model.prototypes[2, 5:9]).sum(0)
        torch.testing.assert_close(model.prototypes[2, old], wanted, atol=1e-4, rtol=1e-3)
    assert model.prototypes[1, 0].norm() > 0 and torch.equal(model.prototypes[0, 0], model.prototypes[0, 0])


def test_answers_weigh_the_own_subspace_most(toy):
    model, images = toy.model, contract.images_of(toy)[0][:3]
    found = model(images)
    with torch.no_grad():
        states = model.subspaces(images, 3)
    for b, c in ((0, 0), (1, 4), (2, 8)):
        cosines = [float(torch.cosine_similarity(states[b, s], model.prototypes[s, c], dim=0)) for s in range(3)]
        own = int(model.owner[c])
        others = sum(v for s, v in enumerate(cosines) if s != own)
        assert float(found[b, c]) == pytest.approx(cosines[own] + 0.1 / 2 * others, abs=1e-4)


def test_a_task_trains_its_own_adapters_on_its_own_classes():
    toy = begun("ease", tasks=2)
    model = toy.model
    before = [{k: v.clone() for k, v in own.state_dict().items()} for own in model.adapters]
    assert model.head.weight.shape[0] == 2
    batch = next(iter(toy.dataset.train_loader))
    loss = model.observe(*batch[:3])
    assert float(loss) == pytest.approx(0.693, abs=0.2)  # CE of two classes at the scale 1
    model.observe(*batch[:3])
    assert all(torch.equal(v, before[0][k]) for k, v in model.adapters[0].state_dict().items())
    assert not torch.equal(model.adapters[1].up, before[1]["up"])


def test_before_any_prototype_every_class_is_alike():
    model = begun("ease").model
    assert torch.equal(model(torch.randn(2, 3, 48, 48)), torch.zeros(2, 3))


def test_the_adapters_of_other_tasks_are_frozen():
    model = begun("ease", tasks=2).model
    assert [[p.requires_grad for p in own.parameters()] for own in model.adapters] == [
        [False] * 4,
        [True] * 4,
        [False] * 4,
    ]
