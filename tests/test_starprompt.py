"""STAR-Prompt's first stage: its two losses by hand, and the rows that must not change."""

from argparse import Namespace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from models.first_stage_starprompt import FirstStageStarPrompt
from tests.clip_weights import write_tiny
from tests.test_cgil import train
from tests.test_vlm_models import Pictures
from utils.cli.parser import new_parser


@pytest.fixture
def build(tmp_path):
    write_tiny(tmp_path)

    def make(**changes):
        parser = new_parser()
        FirstStageStarPrompt.get_parser(parser)
        values = {
            "clip_backbone": str(tmp_path),
            "base_path": str(tmp_path),
            "features": "ram",
            "seed": 0,
            "device": "cpu",
            "non_verbose": True,
            "n_epochs": 2,
            "num_epochs_gr": 2,
            "num_samples_gr": 6,
            "gr_mog_n_iters": 5,
        }
        args = Namespace(**vars(parser.parse_args([])) | values | changes)
        torch.manual_seed(0)
        dataset = Pictures(args)
        return FirstStageStarPrompt(None, dataset.get_loss(), args, None, dataset), dataset

    return make


def test_em_steps_and_components_are_those_of_the_flags(build):
    features, weights = {0: torch.randn(40, 6, generator=torch.Generator().manual_seed(0))}, []
    for steps in (1, 20):
        model, _ = build(gr_mog_n_iters=steps, gr_mog_n_components=3)
        model.mixtures.fit(features, torch.Generator().manual_seed(0))
        weights.append(model.mixtures.rows["weight"])
    assert weights[0].shape == (1, 3) and not torch.allclose(*weights)


def test_prompt_is_one_vector_and_the_name(build):
    model, dataset = build()
    with torch.no_grad():
        model.V[:] = model.net.token_embeddings(model.net.tokenize(["photo"])[:, 1:2])
    expected = model.net.encode_text(model.net.tokenize([f"photo {n}." for n in dataset.get_class_names()]))
    assert torch.allclose(model.encode_keys(torch.arange(7)), normalize(expected.float(), dim=1), atol=1e-5)


def test_task_loss_by_hand(build):
    """Cross-entropy among the task's own names, and the mean square of every product of a new with an old vector."""
    model, dataset = build(lambda_ortho_first_stage=3.0)
    train(model, dataset, 2)
    x, y = normalize(torch.randn(6, model.net.embed_dim), dim=1), torch.tensor([2, 3, 4, 4, 3, 2])
    V, keys = model.V.detach()[:, 0].double(), model.encode_keys(torch.arange(2, 5)).detach()
    products = [float(V[new] @ V[old]) ** 2 for new in (2, 3, 4) for old in (0, 1)]
    expected = cross_entropy(model.net.logit_scale * x @ keys.T, y - 2) + 3 * sum(products) / 6
    assert float(model.task_step(x, y)) == pytest.approx(float(expected), rel=1e-4)


def test_replay_is_over_all_seen_and_moves_the_new(build):
    model, dataset = build(lr=0.0001, learning_rate_gr=1.0, optim_wd=0.1)
    train(model, dataset, 1)
    old = model.V.detach().clone()
    train(model, dataset, 1)
    moved = (model.V != old).flatten(1).any(1).tolist()
    assert moved == [False, False, True, True, True, False, False]
    x, y = normalize(torch.randn(5, model.net.embed_dim), dim=1), torch.tensor([0, 1, 2, 3, 4])
    keys = model.encode_keys(torch.arange(5)).detach()
    model.keys = keys
    expected = cross_entropy(model.net.logit_scale * x @ keys.T, y)
    assert float(model.replay_step(x, y)) == pytest.approx(float(expected), rel=1e-4)


def test_unseen_names_keep_the_hand_written_key(build):
    model, dataset = build()
    train(model, dataset, 1)
    x = torch.randn(3, model.net.embed_dim)
    written = model.text_features(dataset.get_class_names())
    assert torch.allclose(model.future_forward(x)[:, 2:], model.logits(x, written[2:]), atol=1e-4)
    assert torch.equal(model.future_forward(x)[:, :2], model.forward(x))


def test_without_replay_nothing_is_stored(build):
    stored = []
    for replay in (True, False):
        model, dataset = build(enable_gr=replay)
        train(model, dataset, 1)
        stored.append(model.mixtures.stored_bytes())
    assert stored[0] > 0 == stored[1]
