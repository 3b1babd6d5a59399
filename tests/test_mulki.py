"""MulKI and fine-tuning of the whole CLIP: relations, teacher weights, mean weights and resume, against slow forms."""

import functools
import math
import os
import signal

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests import contract, fabricate
from tests.clip_toys import PLAIN, begun, random_clip_folder, toy
from tests.conftest import comparable, in_child, newest_record
from utils import relations
from utils.class_means import class_means
from utils.errors import UserError
from utils.weights import weights_of


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def terms_of(model, inputs, labels):
    """Divergence of each relation from each teacher, (M,)."""
    y = labels - model.n_past_classes
    pixels = model.clip_input(inputs)
    images = model.image_rows(model.net, pixels)
    texts = model.name_rows(model.net, model.n_past_classes, model.n_seen_classes)
    taught, s, known = model.teach(pixels, None), model.scale, model.teachers
    found = {}
    for kind in relations.KINDS:
        wanted = relations.relation(kind, taught, known.texts, known.visuals, known.texts, known.texts, s)
        given = relations.relation(kind, images[None], texts[None], known.visuals, texts[None], known.texts, s)
        found[kind] = relations.divergence(wanted, given, 2.0).mean(-1)
    return found, images, texts, taught, y


# teachers and relations


def test_a_task_starts_at_the_previous_model_and_away_from_the_pretrained_one():
    model, inputs, labels, _ = begun(1)
    found, *_ = terms_of(model, inputs, labels)
    assert model.teachers.texts.shape[:2] == (2, 2)  # two teachers, two classes
    for kind, term in found.items():
        assert term[1].item() == pytest.approx(0, abs=1e-6), kind
        if kind != "tt":  # two classes leave a row with one entry
            assert term[0].item() > 1e-5, kind


def test_names_of_past_tasks_are_taught_by_both_or_by_the_previous_model():
    losses = {}
    for who in ("both", "previous"):
        model, inputs, *_ = begun(1, text_bank="seen", bank_size=3, bank_teacher=who)
        pixels = model.clip_input(inputs)
        losses[who] = model.relate_to_bank(model.image_rows(model.net, pixels), model.teach(pixels, None)).item()
    assert losses["previous"] == pytest.approx(0, abs=1e-6), "the student starts as the previous model"
    assert losses["both"] > 1e-5


def test_flags_of_the_snd_rule_reach_the_shares():
    model, inputs, *_ = begun(1, teacher_weight="snd", snd_scale=3.0, snd_threshold=0.4, w_min=0.0)
    X = unit(2, 5, model.net.embed_dim)
    second = [1 / (1 + math.exp(-3.0 * (float((a - b).norm()) - 0.4))) for a, b in zip(*X, strict=True)]
    assert model.shares(X, None, None, None)[1].tolist() == pytest.approx(second, rel=1e-5)


def test_in_the_first_task_the_teachers_are_one_and_agree_with_the_student():
    model, inputs, labels, _ = begun(0)
    found, images, texts, taught, y = terms_of(model, inputs, labels)
    assert len(taught) == 1 and all(t.item() == pytest.approx(0, abs=1e-6) for t in found.values())
    weights, _ = model.distinguish(taught, y)
    assert torch.equal(weights, torch.ones(1, len(y)))
    alone, inputs2, labels2, _ = begun(0, teachers="pretrained")
    assert torch.equal(inputs, inputs2)
    assert float(model.step(inputs, labels)) == float(alone.step(inputs2, labels2))


def test_relations_against_a_loop_over_rows():
    M, B, n, D, s, tau = 2, 5, 4, 6, 7.0, 2.0
    X, U, V = unit(M, B, D), unit(M, n, D, seed=1), unit(M, n, D, seed=2)
    x, u = unit(B, D, seed=3), unit(n, D, seed=4)

    def dot(a, b):
        return s * sum(float(p) * float(q) for p, q in zip(a, b, strict=True))

    pairs = {
        "it": lambda m, r: ([dot(X[m, r], c) for c in U[m]], [dot(x[r], c) for c in u]),
        "ti": lambda m, r: ([dot(U[m, r], i) for i in X[m]], [dot(u[r], i) for i in x]),
        "vv": lambda m, r: ([dot(X[m, r], c) for c in V[m]], [dot(x[r], c) for c in V[m]]),
        "tt": lambda m, r: (
            [dot(U[m, r], U[m, c]) for c in range(n) if c != r],
            [dot(u[r], U[m, c]) for c in range(n) if c != r],
        ),
        "tv": lambda m, r: ([dot(U[m, r], c) for c in V[m]], [dot(u[r], c) for c in V[m]]),
    }
    for kind, rows in pairs.items():
        got = relations.divergence(
            relations.relation(kind, X, U, V, U, U, s),
            relations.relation(kind, x[None], u[None], V, u[None], U, s),
            tau,
        )
        assert got.shape == (M, B if kind in relations.IMAGE_ROWS else n)
        for m in range(M):
            for r in range(got.shape[1]):
                p, q = (torch.tensor(row, dtype=torch.float64).div(tau).softmax(0) for row in rows(m, r))
                assert float(got[m, r]) == pytest.approx(
                    tau**2 * float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-5
                ), kind


def test_which_tower_each_relation_moves():
    model, inputs, labels, _ = begun(2)
    for kind, towers in {"it": "both", "ti": "both", "vv": "image", "tt": "text", "tv": "text"}.items():
        model.zero_grad(set_to_none=True)
        with torch.no_grad():  # away from agreement with either teacher, where gradients vanish
            for p in model.get_parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        found, *_ = terms_of(model, inputs, labels)
        found[kind].sum().backward()
        named = dict(model.net.clip.named_parameters())
        image = named["visual.conv1.weight"].grad is not None
        text = named["token_embedding.weight"].grad is not None
        assert (image, text) == {"both": (True, True), "image": (True, False), "text": (False, True)}[towers], kind
        assert named["logit_scale"].grad is None
        assert all(p.grad is None for net in (model.pretrained, model.previous) for p in net.parameters())
    assert not model.teachers.texts.requires_grad and not model.teachers.visuals.requires_grad


def test_classes_in_another_order_give_the_same_prototypes_and_losses():
    model, inputs, labels, _ = begun(2)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    _, images, texts, taught, y = terms_of(model, inputs, labels)
    assert torch.equal(class_means(taught, y, 4)[:, order], class_means(taught, order.argsort()[y], 4))

    known = model.teachers

    def losses(y, texts):
        _, gated = model.distinguish(taught, y)
        return model.relate(images, texts, taught, gated, known.visuals) + model.elicit(images, texts, y, known.visuals)

    before = losses(y, texts)
    for name in ("texts", "visuals", "class_weights", "gated_class_weights"):
        setattr(known, name, getattr(known, name)[:, order])
    known.aligned_texts, known.aligned_visuals = known.aligned_texts[order], known.aligned_visuals[order]
    torch.testing.assert_close(losses(order.argsort()[y], texts[order]), before)


@pytest.mark.parametrize("rule", ["label", "entropy", "proto", "snd", "const"])
def test_shares_of_teachers_sum_to_one_above_the_floor(rule):
    X, U, V, y = unit(2, 30, 6), unit(2, 5, 6, seed=1), unit(2, 5, 6, seed=2), torch.arange(30) % 5
    weights = relations.keep_floor(relations.teacher_weights(rule, X, U, V, y, torch.tensor(20.0)), 0.1)
    torch.testing.assert_close(weights.sum(0), torch.ones(30))
    assert weights.min() >= 0.1 - 1e-6 and weights.max() <= 0.9 + 1e-6
    assert rule == "const" or weights.std() > 1e-3


def test_shares_move_to_the_teacher_that_is_not_corrupted():
    U, y = unit(1, 5, 6, seed=1).expand(2, 5, 6), torch.arange(30) % 5
    good = normalize(U[0][y] + 0.1 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    X = torch.stack([good, unit(30, 6, seed=9)])
    for rule in ("label", "entropy", "proto"):
        weights = relations.teacher_weights(rule, X, U, U, y, torch.tensor(20.0))
        assert float(weights[0].mean()) > (0.53 if rule == "entropy" else 0.6), rule
    label = relations.teacher_weights("label", X, U, U, y, torch.tensor(20.0))
    slow = [float(-cross_entropy(20 * X[m] @ U[m].T, y, reduction="none")[3]) for m in range(2)]
    assert float(label[0, 3]) == pytest.approx(float(torch.tensor(slow).softmax(0)[0]), rel=1e-4)
    snd = relations.teacher_weights("snd", X, U, U, y, torch.tensor(20.0), snd=(6.0, 0.2))
    assert float(snd[1, 0]) == pytest.approx(
        1 / (1 + 2.718281828 ** (-6 * (float((X[0, 0] - X[1, 0]).norm()) - 0.2))), rel=1e-4
    )


def test_the_gate_is_the_better_teachers_probability():
    X, U, y = unit(2, 7, 6), unit(2, 5, 6, seed=1), torch.arange(7) % 5
    p = torch.stack([(9.0 * X[m] @ U[m].T).softmax(1)[range(7), y] for m in range(2)]).amax(0)
    torch.testing.assert_close(relations.trust(X, U, y, torch.tensor(9.0), 2.0), p**2)
    assert torch.equal(relations.trust(X, U, y, torch.tensor(9.0), 0.0), torch.ones(7))


def test_few_classes_and_single_images_give_no_nan():
    model, inputs, labels, _ = begun(1, rel="it,ti,vv,tt,tv", elicit="soft", kd_gate=0)  # two classes
    loss = model.step(inputs[:1], labels[:1])
    assert loss.isfinite() and all(p.isfinite().all() for p in model.get_parameters())
    assert relations.drop_diagonal(torch.eye(2)).tolist() == [[0.0], [0.0]]
    assert class_means(torch.ones(1, 2), torch.zeros(2, dtype=torch.long), 3).tolist() == [[1.0, 0.0, 0.0]]


def test_prototypes_are_means_over_drawn_images_of_each_class():
    model, *_ = begun(0, proto_max_per_class=3)
    split = model.dataset.train_loader.dataset
    rows = model.prototype_rows(split.targets)
    assert torch.bincount(split.targets[rows]).tolist() == [3, 3, 3]
    assert torch.equal(rows, model.prototype_rows(split.targets)), "drawn by the seed"
    images = torch.stack([model.net.normalize_images(split.samples.images(split.rows[r : r + 1]))[0] for r in rows])
    with torch.no_grad():
        features = normalize(model.pretrained.encode_image(images), dim=1)
    slow = torch.stack([normalize(features[split.targets[rows] == c].mean(0), dim=0) for c in range(3)])
    torch.testing.assert_close(model.teachers.visuals[0], slow, atol=1e-5, rtol=1e-4)


def test_images_in_files_are_prepared_for_teachers_as_for_tests(tmp_path):
    import main

    pictures = fabricate.image_folder(tmp_path, ["ant", "bee", "cow"])
    for kept in ("0", "1"):
        assert (
            main.main(
                [
                    "--model",
                    "mulki",
                    "--dataset",
                    "seq-folder",
                    "--folder_path",
                    str(pictures),
                    "--n_tasks",
                    "3",
                    "--lr",
                    "0.001",
                    "--image_size",
                    "16",
                    "--clip_backbone",
                    random_clip_folder().name,
                    "--base_path",
                    str(tmp_path),
                    "--n_epochs",
                    "1",
                    "--results_path",
                    str(tmp_path / "runs"),
                    "--cache_teacher",
                    kept,
                    "--device",
                    "cpu",
                    "--non_verbose",
                    "1",
                ]
            )
            == 0
        )
        rows = newest_record(tmp_path / "runs")
        assert rows[-1]["status"] == "done" and not [row for row in rows if row["type"] == "warning"]


def test_moving_prototypes_follow_the_student():
    model, *_ = begun(0, elicit="student")
    before, images, y = model.teachers.moving.clone(), unit(4, model.net.embed_dim), torch.tensor([0, 0, 2, 2])
    model.follow(images, y)
    expected = normalize(0.9 * before[0] + 0.1 * (images[0] + images[1]) / 2, dim=0)
    torch.testing.assert_close(model.teachers.moving[0], expected)
    assert torch.equal(model.teachers.moving[1], before[1]) and not torch.equal(model.teachers.moving[2], before[2])


def test_kept_features_of_teachers_are_those_of_the_view():
    model, inputs, labels, rest = begun(1, augment=0, cache_teacher=1)
    assert model.previous is None and model.teachers.taught.shape[:2] == (2, len(model.dataset.train_loader.dataset))
    plain, inputs2, labels2, _ = begun(1, augment=0)
    kept, fresh = model.teach(model.clip_input(inputs), rest[-1]), plain.teach(plain.clip_input(inputs2), None)
    torch.testing.assert_close(kept, fresh, atol=2e-3, rtol=0)  # bytes are resized to bytes, floats to floats
    half, *_ = begun(1, augment=0, cache_teacher=1, teacher_dtype="fp16")
    assert half.teachers.taught.dtype == torch.float16
    torch.testing.assert_close(half.teachers.taught.float(), model.teachers.taught, atol=5e-3, rtol=1e-1)


def test_reference_data_takes_the_place_of_the_tasks_pictures(tmp_path):
    flags = {"distill_data": "reference", "n_reference": 6, "bank_size": 3, "text_bank": "current", "lambda_E": 0}
    model, inputs, labels, _ = begun(1, teacher_weight="entropy", rel="it=2,ti=3", temperature=1.0, **flags)
    assert model.teachers.pictures.shape[:2] == (2, 6) and len(model.pictures) == 6
    with torch.no_grad():
        model.net.clip.visual.proj.add_(0.05)
        got, drawn = model.relate_to_reference(4), {}
        for name in ("pictures", "sentences"):  # the rows that it drew, found by their features
            rows = (
                model.picture_rows(model.pretrained, model.pictures)
                if name == "pictures"
                else model.text_rows(model.pretrained, model.sentences)
            )
            drawn[name] = rows
        torch.testing.assert_close(model.teachers.pictures[0], drawn["pictures"])
        torch.testing.assert_close(model.teachers.sentences[0], drawn["sentences"])
        assert got > 1e-4 and got.isfinite()
        model.args.rel = {"it": 4.0, "ti": 6.0}
        assert float(model.relate_to_reference(4)) == pytest.approx(2 * float(got), rel=1e-4)
        model.args.rel = {"vv": 1.0}
        assert model.relate_to_reference(4) == 0.0
    with pytest.raises(UserError, match="needs labels"):
        toy(distill_data="reference")


# weights


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True))


def test_everything_off_is_plain_fine_tuning_bit_for_bit():
    tuned = toy("finetune-clip", trained=True, n_epochs=1, avg_freq=0)
    assert same(toy(trained=True, **PLAIN).model, tuned.model)


def test_alpha_zero_keeps_the_pretrained_weights():
    made = toy(trained=True, inter_alpha=0)
    assert same(made.model, toy().model)


@pytest.mark.parametrize("anchor", ["previous", "pretrained", "both"])
def test_tasks_are_connected_to_their_anchor(anchor):
    before, inputs, labels, _ = begun(1, inter_anchor=anchor, inter_alpha=0.25)
    old, model = weights_of(before.net), before
    origin = weights_of(toy().model.net)
    model.meta_observe(inputs, labels, inputs)
    new = weights_of(model.net)
    model.meta_end_task(model.dataset)
    for name, p in weights_of(model.net).items():
        base = {"previous": old, "pretrained": origin, "both": {name: (old[name] + origin[name]) / 2}}[anchor][name]
        torch.testing.assert_close(p, 0.75 * base + 0.25 * new[name], atol=1e-6, rtol=1e-5)


def test_l2_is_the_squared_way_from_the_start():
    model, inputs, labels, _ = begun(0, l2=2.0, **(PLAIN | {"lambda_A": 0}))
    with torch.no_grad():
        model.net.clip.text_projection.add_(0.5)
    names = model.name_rows(model.net, *model.label_range())
    added = model.penalty(None, None, names, labels)
    assert float(added.detach()) == pytest.approx(2 * 0.25 * model.net.clip.text_projection.numel(), rel=1e-5)


def test_low_rank_tasks_move_only_the_adapted_weights_by_their_rank():
    fresh = weights_of(toy().model.net)
    made = toy(trained=True, stop_after=0, peft="lora", lora_rank=1, avg_freq=0, inter_alpha=0.5)
    for name, p in made.model.net.named_parameters():
        if name in fresh and not name.endswith(
            ("attn.in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
        ):
            assert torch.equal(p, fresh[name]), name
    way = (
        made.model.net.clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach()
        - fresh["clip.visual.transformer.resblocks.0.mlp.c_fc.weight"]
    )
    s = torch.linalg.svdvals(way)
    assert s[0] > 1e-4 and s[1] < 1e-2 * s[0]
    assert not toy(trained=True, peft="lora", lora_rank=2, lora_scale=3.0).model.adapters


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"clip_dtype": "fp16"}, "trains CLIP's weights"),
        ({"lr_scheduler": "cosine"}, "its own schedule"),
        ({"rel": "it,xy"}, "xy"),
        ({"rel": "it=-1"}, "out of range"),
        ({"w_min": 0.6}, "out of range"),
        ({"distill_data": "reference", "teacher_weight": "const", "rel": "vv,tt"}, "--rel"),
    ],
)
def test_what_cannot_work_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        toy(**flags)


# resume


def command(folder, base, results, autosave, peft):
    import main

    with contract.toys():
        return main.main(
            [
                "--model",
                "mulki",
                "--dataset",
                "toy-class-il",
                "--clip_backbone",
                folder,
                "--base_path",
                str(base),
                "--results_path",
                str(results),
                "--features",
                "ram",
                "--seed",
                "0",
                "--n_epochs",
                "1",
                "--lr",
                "0.001",
                "--avg_freq",
                "2",
                "--text_bank",
                "seen",
                "--bank_size",
                "2",
                "--elicit",
                "student",
                "--l2",
                "0.1",
                "--device",
                "cpu",
                "--non_verbose",
                "1",
                "--resume",
                "auto",
                "--autosave",
                autosave,
                "--peft",
                peft,
            ]
        )


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_killed_inside_a_task_ends_in_the_same_numbers(peft, tmp_path):
    folder = random_clip_folder().name
    from models.mulki import MulKI

    real, whole, killed = MulKI.observe, tmp_path / "whole", tmp_path / "killed"
    assert in_child(lambda: command(folder, tmp_path, whole, "60", peft)) == 0

    def dies_at(count):
        seen = []

        @functools.wraps(real)
        def observe(self, *args, **kwargs):
            seen.append(1)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *args, **kwargs)

        MulKI.observe = observe
        command(folder, tmp_path, killed, "0.0001", peft)

    assert os.WIFSIGNALED(in_child(lambda: dies_at(9)))  # the third step of the second task
    assert in_child(lambda: command(folder, tmp_path, killed, "60", peft)) == 0
    a, b = ([comparable(r) for r in newest_record(p) if r["type"] in {"task", "end"}] for p in (whole, killed))
    assert a == b and b[-1]["status"] == "done" and len(list(killed.glob("*/*/*"))) == 1
