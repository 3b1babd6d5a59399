"""AttriCLIP: choice of keys, prompts as words, the loss and the bank of encoded choices by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests import contract
from utils.errors import UserError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("attriclip", stop_after=1, matching_loss_lambda=0.6, orthogonalize_loss_lambda=0.4)


def test_nearest_keys_are_chosen(toy):
    x = drawn(5, 128)
    cosines, chosen = toy.model.choose(x)
    for i, row in enumerate(x):
        near = torch.stack([(row @ k) / row.norm() / k.norm() for k in toy.model.keys])
        assert chosen[i].tolist() == near.argsort(descending=True)[:2].tolist()
        torch.testing.assert_close(cosines[i], near.sort(descending=True).values[:2])


@torch.no_grad()
def test_prompts_that_are_words_give_the_sentence(toy, monkeypatch):
    model = toy.model
    words = model.net.token_embeddings(model.net.tokenize("a photo of a"))[0]
    monkeypatch.setattr(model.prompts, "data", model.prompts.data.clone())
    model.prompts[1], model.prompts[3] = words[1:3], words[3:5]
    found = model.encode_names(torch.tensor([[1, 3], [3, 1]]), 0, 9)
    for c, name in enumerate(contract.NAMES):
        texts = model.net.encode_text(model.net.tokenize([f"a photo of a {name}.", f"of a a photo {name}."]))
        torch.testing.assert_close(found[:, c], normalize(texts, dim=1), atol=1e-5, rtol=1e-4)
    alone = normalize(model.net.encode_text(model.net.tokenize(["a photo", "of a"])), dim=1)
    torch.testing.assert_close(model.prompts_alone()[[1, 3]], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_loss_by_hand(toy):
    model, x, y = toy.model, drawn(4, 128), torch.tensor([3, 4, 4, 3])
    cosines, chosen = model.choose(x)
    names = model.encode_names(chosen, 0, 9)
    logits = torch.stack([model.net.logit_scale * names[i] @ normalize(x[i], dim=0) for i in range(4)])
    alone = model.prompts_alone()
    between = [float((alone[i] @ alone[j]).abs()) for i in range(4) for j in range(4) if i != j]
    wanted = cross_entropy(logits[:, 3:5], y - 3) + 0.6 * (1 - cosines).mean() + 0.4 * sum(between) / 12
    assert float(model.loss_of(x, y, None, 0)) == pytest.approx(float(wanted), rel=1e-4)


@torch.no_grad()
def test_each_choice_is_encoded_once(toy, monkeypatch):
    model, x = toy.model, drawn(20, 128)
    monkeypatch.setattr(model, "codes", model.codes[:0])
    monkeypatch.setattr(model, "texts", model.texts[:0])
    found = model.future_forward(x)
    chosen = model.choose(x).indices
    assert len(model.codes) == len({tuple(row) for row in chosen.tolist()}) > 1
    for i in range(0, len(x), 5):
        texts = model.encode_names(chosen[i : i + 1], 0, 9)[0]
        wanted = model.net.logit_scale * texts @ normalize(x[i], dim=0)
        torch.testing.assert_close(found[i], wanted, atol=1e-3, rtol=1e-4)
    before = model.texts
    model.future_forward(x)
    assert model.texts is before


def test_only_chosen_keys_are_pulled(toy):
    model, x = toy.model, drawn(2, 128)
    model.keys.grad = None
    model.loss_of(x, torch.tensor([3, 4]), None, 0).backward()
    chosen = set(model.choose(x).indices.flatten().tolist())
    assert {i for i in range(4) if model.keys.grad[i].any()} == chosen
    assert (1 - torch.tensor([bool(model.prompts.grad[i].any()) for i in range(4)]).float()).sum() == 0


def test_more_chosen_than_there_are():
    with contract.toys(), pytest.raises(UserError, match="--text_prompt 5 is more than the bank's --num_prompt 4"):
        contract.build("attriclip", text_prompt=5)


def test_a_new_task_encodes_anew():
    with contract.toys():
        first = contract.run("attriclip", stop_after=0).model
        assert len(first.codes) == len(first.texts) > 0
        first.train_on = lambda *_: None
        first.end_task(first.dataset)
    assert not len(first.codes) and not len(first.texts)
