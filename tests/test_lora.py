"""Low-rank terms per task: design and absorption by hand, what is frozen, sums, the three penalties and sizes."""

from unittest import mock

import pytest
import torch

from models.lora import Lora, absorb
from tests import contract
from tests import test_contract_models as checks
from tests.test_prompt_baselines import begun
from utils.errors import UserError

FORMS = ("inf", "sd", "o")


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


def step(toy) -> torch.Tensor:
    batch = next(iter(toy.dataset.train_loader))
    return toy.model.observe(*batch[:3])


@pytest.mark.parametrize("form", ["sd", "o"])  # the first is the contract's own
def test_the_contract_holds_for_the_other_forms(form, tmp_path):
    with mock.patch.object(Lora, "TOY_ARGS", Lora.TOY_ARGS | {"form": form, "n_epochs": 1}):
        toy = contract.run("lora")
        with mock.patch.object(checks, "trained", lambda name: toy):
            checks.finite("lora")
            checks.state_round_trip("lora", tmp_path)
            checks.batch_of_one_equals_batch_of_many("lora")
            checks.images_are_counted("lora")
            checks.stored_bytes_true("lora")


@pytest.mark.parametrize("form", FORMS)
def test_terms_start_at_nothing_and_those_of_past_tasks_are_frozen(form):
    toy = begun("lora", tasks=2, form=form, optim_wd=0.1)
    model, images = toy.model, torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model.states(images, edits=model.edits()), model.states(images), atol=1e-4, rtol=1e-4)
    before = [[p.detach().clone() for p in kept] for kept in (model.A, model.B)]
    step(toy), step(toy)
    assert torch.equal(model.A[0], before[0][0]) and torch.equal(model.B[0], before[1][0])
    assert not torch.equal(model.B[1], before[1][1])
    assert torch.equal(model.A[1], before[0][1]) == (form == "inf"), "only InfLoRA keeps A as designed"
    assert not torch.allclose(model.states(images, edits=model.edits()), model.states(images), atol=1e-4)


def test_the_design_avoids_what_past_tasks_use():
    torch.manual_seed(0)
    model = contract.build("lora", lora_rank=3).model
    basis = torch.linalg.qr(torch.randn(model.n_layers, model.width, 5)).Q
    model.kept = basis @ basis.mT
    x = torch.randn(model.n_layers, 40, model.width, dtype=torch.float64)
    found = model.design(x.mT @ x)
    assert (found.float() @ basis).abs().max() < 1e-6
    torch.testing.assert_close(found @ found.mT, (torch.eye(3) / 3).double().expand(model.n_layers, 3, 3))
    free = x[0] - x[0] @ (basis[0] @ basis[0].T).double()
    wanted = torch.linalg.svd(free).Vh[:3] / 3**0.5  # left singular vectors of the inputs as columns
    torch.testing.assert_close(found[0].T @ found[0], wanted.T @ wanted, atol=1e-6, rtol=0)


def test_absorbing_keeps_the_first_directions_that_reach_the_share():
    energies = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 0.0])
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    moments = (turn * energies) @ turn.T
    nothing = torch.zeros(1, 6, 6)
    for share, rank in ((0.4, 1), (0.6, 2), (0.7, 2), (0.8, 3), (1.0, 5)):
        kept = absorb(nothing, moments[None], share)
        wanted = turn[:, :rank] @ turn[:, :rank].T
        torch.testing.assert_close(kept[0], wanted, atol=1e-6, rtol=0)
    first = (turn[:, :1] @ turn[:, :1].T)[None].float()  # already held: half of the energy
    again = absorb(first, moments[None], 0.7)
    torch.testing.assert_close(again[0], turn[:, :2] @ turn[:, :2].T, atol=1e-6, rtol=0)
    torch.testing.assert_close(absorb(first, moments[None], 0.4), first.double(), atol=1e-6, rtol=0)


def test_inf_keeps_a_growing_share_by_lamb_and_lame():
    shares = []
    with mock.patch("models.lora.absorb", lambda kept, moments, share: shares.append(share) or kept):
        contract.run("lora", lamb=0.4, lame=0.7, n_epochs=1)
    assert shares == pytest.approx([0.4, 0.5, 0.6])


def test_second_moments_see_the_network_with_its_terms():
    toy = begun("lora", tasks=1)
    model = toy.model
    with torch.no_grad():
        model.B[0].normal_()
    found = model.second_moments(toy.dataset)
    assert found.shape == (model.n_layers, model.width, model.width)
    torch.testing.assert_close(found[0].diagonal().sum().float(), traces(toy)[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[1].diagonal().sum().float(), traces(toy)[1], rtol=1e-3, atol=0)


def traces(toy) -> list:
    """Sum of |h|^2 over the inputs of the first two blocks, by their norms' outputs."""
    found, hooks = [0.0, 0.0], []
    for n in range(2):
        block = toy.model.net.clip.visual.transformer.resblocks[n]

        def note(module, inputs, out, n=n):
            found[n] = found[n] + out.square().sum()

        hooks.append(block.ln_1.register_forward_hook(note))
    with torch.no_grad():
        for images, _ in toy.model.plain_pass(toy.dataset):
            toy.model.states(images, edits=toy.model.edits())
    for hook in hooks:
        hook.remove()
    return found


def test_sd_divides_past_terms_by_their_norms_and_trains_all_alphas():
    toy = begun("lora", tasks=2, form="sd", alpha_init=0.6)
    model, images = toy.model, torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for b in model.B:
            b.normal_(0, 0.3)
    before = model.states(images, edits=model.edits())
    term = model.edits()[1]
    a, b = model.A[0][1, 0], model.B[0][1, 0]
    wanted = 0.6 * b @ a / (a.norm() * b.norm()) + 0.6 * model.B[1][1, 0] @ model.A[1][1, 0]
    torch.testing.assert_close(term.up[0] @ term.down[0], wanted)
    with torch.no_grad():
        model.A[0].mul_(3.0)
    torch.testing.assert_close(model.states(images, edits=model.edits()), before, atol=1e-4, rtol=1e-4)
    step(toy)
    assert all(float(alpha.detach()) != pytest.approx(0.6) for alpha in model.alphas)
    for alpha in model.alphas:
        alpha.data.zero_()
    torch.testing.assert_close(model.states(images, edits=model.edits()), model.states(images), atol=1e-4, rtol=1e-4)


def test_o_adds_overlap_and_norms():
    model = begun("lora", tasks=2, form="o", lambda_1=0.25, lambda_2=2.0).model
    with torch.no_grad():
        model.B[1].fill_(0.1)
    overlap = sum(
        abs(float(old @ new))
        for n in range(model.n_layers)
        for place in range(2)
        for old in model.A[0][n, place].detach()
        for new in model.A[1][n, place].detach()
    )
    norms = sum(
        float(p[n, k].detach().norm()) for p in (model.A[1], model.B[1]) for n in range(model.n_layers) for k in (0, 1)
    )
    assert float(model.penalty().detach()) == pytest.approx(0.25 * overlap + 2.0 * norms, rel=1e-4)
    with torch.no_grad():
        model.A[1].zero_()
        model.B[1].zero_()
    assert float(model.penalty().detach()) == 0
    losses = [step(begun("lora", tasks=2, form="o", lambda_1=v)) for v in (0.0, 1.0)]
    model = begun("lora", tasks=2, form="o", lambda_1=1.0).model
    assert float(losses[1] - losses[0]) == pytest.approx(float(model.penalty().detach()), rel=1e-3)


def test_flags_of_another_form_are_refused():
    for flags in ({"lamb": 0.9, "form": "o"}, {"alpha_init": 1, "form": "inf"}, {"lambda_2": 1, "form": "sd"}):
        with pytest.raises(UserError, match=f"--{next(iter(flags))} changes nothing with --form {flags['form']}"):
            contract.build("lora", **flags)
    with pytest.raises(UserError, match="--lora_rank 400 is more than the network's width"):
        contract.build("lora", lora_rank=400)
