"""CoOp: the learned prompt with hand-written vectors is the hand-written prompt, and only what is trained moves."""

from argparse import Namespace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from models.coop import CoOp
from tests.clip_weights import write_tiny
from tests.test_cgil import train
from tests.test_vlm_models import Pictures
from utils.cli.parser import new_parser


@pytest.fixture
def build(tmp_path):
    write_tiny(tmp_path)

    def make(**changes):
        parser = new_parser()
        CoOp.get_parser(parser)
        values = {
            "clip_backbone": str(tmp_path),
            "base_path": str(tmp_path),
            "features": "ram",
            "seed": 0,
            "device": "cpu",
            "non_verbose": True,
            "n_epochs": 2,
            "n_ctx": 4,
            "optimizer": "adamw",
            "lr": 0.01,
        }
        args = Namespace(**vars(parser.parse_args([])) | values | changes)
        torch.manual_seed(0)
        dataset = Pictures(args)
        return CoOp(None, dataset.get_loss(), args, None, dataset), dataset

    return make


def test_written_vectors_give_the_written_prompt(build):
    model, dataset = build()
    tokens = model.net.tokenize(["a photo of a"])
    with torch.no_grad():
        model.ctx.copy_(model.net.token_embeddings(tokens[:, 1:5]))
    expected = model.net.encode_text(model.net.tokenize([f"a photo of a {n}." for n in dataset.get_class_names()]))
    assert torch.allclose(model.encode_keys(torch.arange(7)), normalize(expected.float(), dim=1), atol=1e-5)


@pytest.mark.parametrize("loss, moves", [("current", slice(2, 5)), ("seen", slice(0, 5))])
def test_only_classes_in_the_softmax_move(build, loss, moves):
    model, dataset = build(csc=True, coop_loss=loss, optim_wd=0.1)
    train(model, dataset, 1)
    before = model.ctx.detach().clone()
    train(model, dataset, 1)
    changed = (model.ctx != before).flatten(1).any(1)
    expected = torch.zeros(7, dtype=torch.bool)
    expected[moves] = True
    assert torch.equal(changed, expected)


def test_loss_is_over_the_tasks_own_names(build):
    model, dataset = build()
    train(model, dataset, 2)
    x, y = normalize(torch.randn(5, model.net.embed_dim), dim=1), torch.tensor([2, 3, 4, 2, 3])
    keys = model.encode_keys(torch.arange(2, 5))
    expected = cross_entropy(model.net.logit_scale * x @ keys.T, y - 2)
    assert torch.allclose(model.step(x, y), expected, atol=1e-5)


def test_unseen_names(build):
    """They get the shared context; where every class has its own, their hand-written key."""
    x = torch.randn(3, 48)
    shared, dataset = build()
    train(shared, dataset, 1)
    keys = shared.encode_keys(torch.arange(7))
    assert torch.allclose(shared.future_forward(x), shared.logits(x, keys), atol=1e-4)
    own, dataset = build(csc=True)
    train(own, dataset, 1)
    assert torch.allclose(own.future_forward(x)[:, 2:], own.logits(x, own.written[2:]), atol=1e-4)


def test_labels_go_with_their_features_in_a_new_order_each_pass(build):
    model, dataset = build(n_epochs=3, batch_size=4)
    dataset.get_data_loaders()
    model.meta_begin_task(dataset)
    features, labels = model.image_features(dataset.train_loader.dataset)
    features, step, seen = normalize(features, dim=1), model.step, []

    def noted(x, y):
        rows = torch.cdist(x, features).argmin(1)
        assert torch.equal(labels[rows], y)
        seen.append(rows)
        return step(x, y)

    model.step = noted
    model.meta_end_task(dataset)
    passes = torch.cat(seen).view(3, -1).tolist()
    assert len({tuple(p) for p in passes} | {tuple(range(len(labels)))}) == 4


def test_the_rate_falls_within_a_task(build):
    """Two passes of a cosine: the whole rate, then half of it; the next task starts anew."""
    model, dataset = build(n_epochs=2, batch_size=99, lr_scheduler="cosine")
    step, rates = model.step, []

    def noted(x, y):
        rates.append(model.opt.param_groups[0]["lr"])
        return step(x, y)

    model.step = noted
    train(model, dataset, 2)
    assert rates == pytest.approx([0.01, 0.005] * 2)
