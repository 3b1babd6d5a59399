"""CluMo: keys, selection, what is trained, distillation, growing head, routing, and forgetting against fine-tuning."""

from argparse import Namespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from backbone.clip import load_clip
from backbone.fusion import UNSEEN, FusionTransformer, GrowingHead, fusion_of, make_fusion, question_mask
from models.utils import fused_model
from models.utils.fused_model import Fused
from tests import contract
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def begun(stream: str = "toy-pairs", tasks: int = 1, **flags) -> contract.Toy:
    """A model whose first tasks have begun, without a step of training."""
    toy = contract.build("clumo", stream, **flags)
    for task in range(tasks):
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
        if task + 1 < tasks:
            toy.model.meta_end_task(toy.dataset)
    return toy


def batch_of(toy: contract.Toy) -> tuple:
    inputs, labels, not_aug = next(iter(toy.dataset.train_loader))[:3]
    return inputs, labels, not_aug


def planted(model, visual: torch.Tensor, textual: torch.Tensor) -> Fused:
    """A batch whose key features are the given ones."""
    n, clip = len(visual), model.net
    image, text = torch.randn(n, clip.n_image_tokens, clip.vision_width), torch.randn(n, 4, clip.text_width)
    return Fused(image, text, torch.ones(n, 4, dtype=torch.bool), visual, textual, None)


# stage 1


def test_every_sample_is_one_point_and_distinct_questions_are_encoded_once():
    toy = begun(features="ram")
    references = toy.dataset.train_loader.dataset.data
    visual, textual = toy.model.key_features(references)
    split = toy.dataset.train_loader.dataset
    assert len(visual) == len(textual) == len(split) == sum(contract.PER_CLASS[:3])
    questions = toy.dataset.samples(True).data.text[references[:, 1]]
    assert toy.model.questions.forwards == len(questions.unique(dim=0))
    assert toy.model.store.forwards == len(references)
    for batch in toy.dataset.train_loader:  # nothing is encoded again
        toy.model.read(batch[0])
    assert toy.model.store.forwards == len(references)


def test_references_name_their_task():
    toy = begun(tasks=2, features="ram")
    assert (toy.dataset.train_loader.dataset.data[:, 2] == 1).all()
    loader = toy.dataset.test_loaders[1]
    assert (toy.model.cached_inputs(loader)[:, 2] == 1).all() and (
        toy.model.cached_inputs(toy.dataset.test_loaders[0])[:, 2] == 0
    ).all()


def test_tokens_from_the_cache_are_those_of_the_pictures():
    toy = begun(features="ram")
    rows = torch.arange(5)
    references = toy.dataset.train_loader.dataset.data[rows]
    pairs = toy.dataset.samples(True).data[references[:, 1]]
    pairs.image = toy.model.net.normalize_images(pairs.image)
    kept, direct = toy.model.read(references), toy.model.read(pairs)
    for name in ("image", "text", "visual", "textual"):
        torch.testing.assert_close(getattr(kept, name), getattr(direct, name), atol=2e-2, rtol=2e-3)
    assert torch.equal(kept.seen, direct.seen) and (kept.task == 0).all() and direct.task is None


def test_key_features_are_those_of_clip():
    toy = begun(features="ram")
    pairs = toy.dataset.samples(True).data[torch.arange(6)]
    pairs.image = toy.model.net.normalize_images(pairs.image)
    batch = toy.model.read(pairs)
    for found, wanted in (
        (batch.visual, toy.model.net.encode_image(pairs.image)),
        (batch.textual, toy.model.net.encode_text(pairs.text)),
    ):
        torch.testing.assert_close(found, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_keys_are_buffers_and_stay_bit_for_bit():
    toy = begun()
    model, before = toy.model, toy.model.visual_keys.clone()
    assert "visual_keys" in model.state_dict() and "visual_keys" not in dict(model.named_parameters())
    for batch in toy.dataset.train_loader:
        model.meta_observe(*batch[:3], epoch=0)
    assert torch.equal(model.visual_keys, before)
    model.meta_end_task(toy.dataset)
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    assert torch.equal(model.visual_keys[:1], before) and len(model.visual_keys) == len(model.text_keys) == 2


# selection


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_planted_queries_pick_their_prompt(metric):
    toy = begun(n_visual_keys=3, n_text_keys=2, key_metric=metric)
    model = toy.model
    model.visual_keys = torch.eye(3, model.visual_keys.shape[2])[None]
    model.text_keys = torch.eye(2, model.text_keys.shape[2])[None]
    i, j = torch.cartesian_prod(torch.arange(3), torch.arange(2)).unbind(1)
    batch = planted(model, model.visual_keys[0][i] + 0.01, model.text_keys[0][j] + 0.01)
    pool = torch.zeros(6, dtype=torch.long)
    assert model.choose(batch, pool).tolist() == (j * 3 + i).tolist()
    if metric == "cosine":
        longer = batch._replace(visual=7 * batch.visual, textual=0.2 * batch.textual)
        assert torch.equal(model.choose(longer, pool), model.choose(batch, pool))


def test_only_picked_prompts_get_a_gradient():
    toy = begun(tasks=2, fusion_train="first", kd_weight=0)
    model = toy.model
    inputs, labels, _ = batch_of(toy)
    batch = model.read(inputs)
    pool = torch.ones_like(labels)
    picked = model.choose(batch, pool)
    cross_entropy(model.head(model.states(batch, pool, picked)), model.head.rows_of(labels)).backward()
    grid = model.prompts[1].grad.flatten(1).abs().sum(1)
    chosen = torch.zeros(len(grid), dtype=torch.bool).index_fill(0, picked, True)
    assert (grid[chosen] > 0).all() and (grid[~chosen] == 0).all() and not chosen.all()
    assert model.general[1].grad.abs().sum() > 0
    for frozen in (model.prompts[0], model.general[0], *model.net.parameters()):
        assert frozen.grad is None
    trained = {id(p) for group in model.opt.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert (
        id(named["prompts.1"]) in trained
        and id(named["head.weight"]) in trained
        and id(named["prompts.0"]) not in trained
    )


def test_gradients_do_not_add_up_over_steps():
    moves = []
    for repeats in (1, 2):
        toy = begun(optimizer="sgd", lr=0.1, optim_wd=0)
        batch = batch_of(toy)
        toy.model.meta_observe(*batch, epoch=0)
        state = {k: v.clone() for k, v in toy.model.state_dict().items()}
        if repeats == 2:  # the same step again from the same state
            start = {k: v.clone() for k, v in begun(optimizer="sgd", lr=0.1, optim_wd=0).model.state_dict().items()}
            toy.model.load_state_dict(start)
            toy.model.meta_observe(*batch, epoch=0)
            state = {k: v.clone() for k, v in toy.model.state_dict().items()}
        moves.append(state)
    for key, value in moves[0].items():
        assert torch.equal(value, moves[1][key]), key


# head and distillation


def test_the_head_grows_without_moving_old_answers():
    torch.manual_seed(0)
    head, x = GrowingHead(8, 10), torch.randn(5, 8)
    head.grow(torch.tensor([7, 2, 7]))
    before = head(x)
    head.grow(torch.tensor([2, 9, 0, 7]))
    assert head.answers.tolist() == [2, 7, 0, 9]
    assert torch.equal(head(x)[:, :2], before)
    assert head.rows_of(torch.tensor([9, 2, 0])).tolist() == [3, 0, 2]
    full = head.spread(head(x))
    assert torch.equal(full[:, [2, 7, 0, 9]], head(x)) and (full[:, [1, 3, 4, 5, 6, 8]] == UNSEEN).all()


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_distillation_is_zero_at_the_previous_head_and_looks_at_old_answers_only(kind):
    toy = begun(tasks=2, kd_type=kind)
    model = toy.model
    inputs, labels, _ = batch_of(toy)
    batch, pool = model.read(inputs), torch.ones_like(labels)
    picked = model.choose(batch, pool)
    old = len(model.teacher)
    assert old == 3 and len(model.head.answers) == 5
    states = model.states(batch, pool, picked)

    def distance():
        return model.distillation(model.head(states), states, batch, pool, picked)

    assert distance().abs() < 1e-6
    with torch.no_grad():
        model.head.weight[old:] += 1  # new answers do not count
    assert distance().abs() < 1e-6
    with torch.no_grad():
        model.head.weight[:old] += torch.randn_like(model.head.weight[:old])
    assert distance() > 1e-3
    if kind == "mse":
        own = states @ model.head.weight.T + model.head.bias
        wanted = states @ model.teacher[:, :-1].T + model.teacher[:, -1]
        torch.testing.assert_close(distance(), (own[:, :old] - wanted).square().mean())
    teacher = model.teacher.clone()
    model.meta_observe(inputs, labels, inputs, epoch=0)
    assert torch.equal(model.teacher, teacher)


def test_there_is_no_distillation_in_the_first_task():
    with_kd, without = (contract.run("clumo", "toy-pairs", kd_weight=w) for w in (5.0, 0.0))
    steps = len(with_kd.losses) // 3
    first = [i for i, call in enumerate(c for c in with_kd.calls if c[0] == "observe") if call[1] == 0]
    assert [with_kd.losses[i] for i in first] == [without.losses[i] for i in first]
    assert with_kd.losses != without.losses and steps


def test_the_fusion_trains_when_it_is_said_to():
    for when, moved in (("first", [True, False, False]), ("always", [True] * 3), ("never", [False] * 3)):
        toy = contract.build("clumo", "toy-pairs", fusion_train=when)
        for task in range(3):
            toy.dataset.get_data_loaders()
            toy.model.meta_begin_task(toy.dataset)
            before = toy.model.net.fusion.blocks[0].qkv.weight.clone()
            toy.model.meta_observe(*batch_of(toy), epoch=0)
            assert (not torch.equal(before, toy.model.net.fusion.blocks[0].qkv.weight)) == moved[task], (when, task)
            toy.model.meta_end_task(toy.dataset)


def test_a_fusion_that_stays_random_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(fused_model, "warn_once", told.append)
    begun(fusion_train="never")
    begun(fusion_train="first")
    assert len(told) == 1 and "--fusion_train first" in told[0]


def test_a_routed_head_answers_as_it_did_after_its_task():
    toy = begun(tasks=2, head="routed")
    model = toy.model
    inputs = toy.dataset.test_loaders[0].dataset
    references = model.references(inputs, 0)
    for batch in toy.dataset.train_loader:
        model.meta_observe(*batch[:3], epoch=0)
    model.meta_end_task(toy.dataset)
    assert model.head_bank.shape[:2] == (2, 5) and (model.head_bank[0, 3:, -1] == UNSEEN).all()
    before = model.answers(references, "oracle")
    with torch.no_grad():
        model.head.weight += 1
    assert torch.equal(model.answers(references, "oracle"), before)
    assert (before[:, 3:5] <= UNSEEN / 2).all()


# routing


def test_separated_tasks_are_told_apart_and_the_scales_of_both_modalities_count_alike():
    toy = begun(tasks=3, route_rule="nearest")
    model, rng = toy.model, torch.Generator().manual_seed(0)
    n, d = 60, model.visual_keys.shape[2]
    task = torch.arange(n) % 3
    model.visual_keys = torch.zeros_like(
        model.visual_keys
    )  # images carry no information, on a scale a thousand times larger
    centres = torch.randn(3, 1, d, generator=rng)
    model.text_keys = centres.expand(3, model.n_text_keys, d).contiguous()
    textual = centres[task, 0] + 0.2 * torch.randn(n, d, generator=rng)
    visual = 1000 * torch.randn(n, d, generator=rng)
    model.spreads = torch.tensor([[1e6 * d, 0.04 * d]]).expand(3, 2)
    batch = planted(model, visual, textual)
    assert (model.route(batch, "key") == task).float().mean() >= 0.95
    assert torch.equal(model.route(batch._replace(task=task), "oracle"), task)
    with pytest.raises(UserError, match="--route oracle"):
        model.route(batch, "oracle")


@pytest.mark.parametrize("rule", ["centre", "nearest"])
def test_distances_to_tasks_against_loops(rule):
    toy = begun(tasks=2, route_rule=rule)
    model = toy.model
    visual, textual = model.key_features(toy.dataset.train_loader.dataset.data)
    routers = (model.visual_keys, model.text_keys)
    if rule == "centre":
        routers = model.visual_centres, model.text_centres
        torch.testing.assert_close(routers[0][1, 0], visual.mean(0))
        torch.testing.assert_close(model.spreads[1, 1], (textual - textual.mean(0)).square().sum(1).mean())
    batch = model.read(toy.dataset.train_loader.dataset.data[:4])
    found, scale = model.task_distances(batch), model.spreads.mean(0)
    for b in range(4):
        for t in range(2):
            v = min(float((batch.visual[b] - key).square().sum()) for key in routers[0][t])
            q = min(float((batch.textual[b] - key).square().sum()) for key in routers[1][t])
            assert found[b, t].item() == pytest.approx(v / scale[0].item() + q / scale[1].item(), rel=1e-3)


# the network


def test_padding_after_a_question_is_not_looked_at():
    torch.manual_seed(0)
    fusion = FusionTransformer(6, 5, 8, 2, 2).eval()
    image, text = torch.randn(3, 4, 6), torch.randn(3, 7, 5)
    tokens = torch.tensor([[1, 9, 0, 0, 0, 0, 0], [1, 2, 3, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6, 9]])
    seen = question_mask(tokens)
    assert seen.sum(1).tolist() == [2, 4, 7]
    whole = fusion(image, text, seen)
    text[0, 2:], text[1, 4:] = 99.0, -99.0
    assert torch.equal(fusion(image, text, seen), whole)
    for row, length in enumerate((2, 4, 7)):
        one = slice(row, row + 1)
        short = fusion(image[one], text[one, :length], seen[one, :length])
        torch.testing.assert_close(short, whole[one], atol=1e-5, rtol=1e-5)


def test_the_short_last_block_is_exact():
    torch.manual_seed(0)
    fusion = FusionTransformer(6, 5, 8, 3, 2).eval()
    image, text, prompts = torch.randn(2, 4, 6), torch.randn(2, 3, 5), torch.randn(2, 5, 8)
    seen = torch.ones(2, 3, dtype=torch.bool)
    cls, states = fusion(image, text, seen, prompts, prompt_states=True)
    torch.testing.assert_close(fusion(image, text, seen, prompts), cls)
    x = torch.cat(
        [
            fusion.cls.expand(2, 1, -1),
            prompts + fusion.kinds[0],
            fusion.image_in(image) + fusion.kinds[1],
            fusion.text_in(text) + fusion.kinds[2],
        ],
        dim=1,
    )
    for block in fusion.blocks:  # every row of every block, through the library's own attention
        attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": block.qkv.weight,
                "in_proj_bias": block.qkv.bias,
                "out_proj.weight": block.out.weight,
                "out_proj.bias": block.out.bias,
            }
        )
        h = block.ln_1(x)
        x = x + attention(h, h, h, need_weights=False)[0]
        x = x + block.mlp(block.ln_2(x))
    torch.testing.assert_close(fusion.norm(x)[:, 0], cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fusion.norm(x)[:, 1:6], states, atol=1e-5, rtol=1e-4)


def test_shipped_weights_are_those_of_the_tiny_clip(tmp_path):
    clip = load_clip("tiny")
    shipped, fresh = make_fusion(clip), make_fusion(clip, "none", width=16, layers=1, heads=2)
    assert shipped.sizes["width"] == 128 and fresh.sizes == {"width": 16, "layers": 1, "heads": 2}
    assert all(p.isfinite().all() for p in shipped.parameters())
    for weights, kind in (("auto", shipped), ("none", fresh)):
        flags = {"fusion_weights": weights} | {f"fusion_{k}": v for k, v in kind.sizes.items()}
        own = fusion_of(clip, Namespace(**flags))
        assert own.sizes == kind.sizes and torch.equal(own.cls, kind.cls) == (weights == "auto")
    state = torch.get_rng_state()
    assert torch.equal(make_fusion(clip).cls, shipped.cls) and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="--fusion_width 64"):
        make_fusion(clip, width=64)
    with pytest.raises(UserError, match="--fusion_heads 3"):
        make_fusion(clip, "none", width=16, heads=3)
    with pytest.raises(UserError, match="no readable config.json"):
        make_fusion(clip, str(tmp_path))
    (tmp_path / "config.json").write_text('{"clip_sha256": "another", "sizes": {}}')
    with pytest.raises(UserError, match="on a CLIP other than tiny"):
        make_fusion(clip, str(tmp_path))
    (tmp_path / "config.json").write_text(
        f'{{"clip_sha256": "{clip.sha256}", "sizes": {{"width": 16, "layers": 1, "heads": 2}}}}'
    )
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        make_fusion(clip, str(tmp_path))


def test_training_is_resumed_to_the_same_scores(tmp_path):
    """A model saved inside its second task and continued in a fresh one takes the same next steps."""
    from tests.test_contract_models import skipped
    from utils.engine import checkpoint

    toy = begun(tasks=2)
    batches = [batch[:3] for batch in toy.dataset.train_loader]
    toy.model.meta_observe(*batches[0], epoch=0)
    fresh = begun(tasks=2)
    state, lost = checkpoint.capture(toy.model, skipped(toy.model))
    assert not lost
    checkpoint.save(tmp_path / "saved", state, model="clumo")
    checkpoint.restore(fresh.model, checkpoint.load(tmp_path / "saved", model="clumo"), skipped(fresh.model))
    losses = [[float(toy_.model.meta_observe(*batch, epoch=0)) for batch in batches[1:]] for toy_ in (toy, fresh)]
    assert losses[0] == losses[1]


def test_bce_takes_the_soft_scores():
    toy = begun(answer_loss="bce")
    model, labels = toy.model, torch.tensor([0, 2])
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
    soft = torch.zeros(2, 9)
    soft[0, 0], soft[0, 1], soft[1, 2] = 0.9, 0.3, 1.0
    p = logits.sigmoid()
    wanted = soft[:, :3]
    by_hand = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(model.answer_loss(logits, labels, soft), by_hand)
    hard = torch.eye(3)[labels]
    torch.testing.assert_close(
        model.answer_loss(logits, labels), -(hard * p.log() + (1 - hard) * (1 - p).log()).sum() / 2
    )
