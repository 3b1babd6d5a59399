"""The streams of the picture world as data sets, the CLIP backbones they train, and the names of their scores."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torchvision.transforms import RandomHorizontalFlip

import main
from backbone.clip import load_clip
from backbone.clip_files import TINY_DIR
from backbone.clip_visual import ClipFused, ClipVisual, clip_fused, clip_visual
from backbone.tiny_tokenizer import TinyTokenizer
from datasets.clove_tiny_function import CloveTinyFunction
from datasets.clove_tiny_scene import CloveTinyScene
from datasets.mm_tiny import MmTiny
from datasets.mtil_tiny import MtilTiny
from datasets.seq_tiny import SeqTiny
from datasets.tiny_world import streams
from datasets.tiny_world.captions import QUESTION_KINDS
from datasets.utils import tokens
from datasets.utils.tiny_questions import ANSWERS
from datasets.utils.vqa import soft_scores
from tests.conftest import newest_record
from utils.errors import UserError
from utils.pair import Pair

FIRST_WORDS = {  # how questions of a kind begin
    "object": "what object",
    "attribute": "what (color|pattern)",
    "count": "how many",
    "relation": "where is .* seen from",
    "logic": "are there (more|fewer) than",
    "scene": "where is the picture",
}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few images of each class, so that the whole file draws in seconds."""
    patch = pytest.MonkeyPatch()
    for sizes, train, test in (("SEQ_TINY_SIZE", 3, 2), ("MTIL_SIZE", 4, 3), ("CLOVE_SIZE", 40, 20), ("MM_SIZE", 8, 4)):
        patch.setattr(streams, sizes, {True: train, False: test})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def build(base):
    def make(cls, **changes):
        own = {k: changes.pop(k) for k in ("mtil_order", "phases", "shift", "style", "picture_seed") if k in changes}
        given = {"base_path": base, "batch_size": 8, "seed": 0, "clip_backbone": cls.DEFAULTS["clip_backbone"]}
        return cls(Namespace(**given | changes), **own)

    return make


def tasks(dataset):
    return [dataset.get_data_loaders() for _ in range(dataset.N_TASKS)]


def pixels(split):
    data = split.data
    return data.image if isinstance(data, Pair) else data


# ---- domains


@pytest.mark.parametrize("order", ["I", "II"])
def test_domains_come_in_order_with_their_own_classes(build, order):
    dataset = build(MtilTiny, mtil_order=order)
    first = 0
    for domain, (train, test) in zip(streams.MTIL_ORDERS[order], tasks(dataset), strict=True):
        for loader, is_train in ((train, True), (test, False)):
            raw = streams.mtil_tiny(domain, is_train)
            assert torch.equal(pixels(loader.dataset), raw["images"])
            assert torch.equal(loader.dataset.targets - first, raw["labels"])
        names = streams.mtil_names(domain)
        assert dataset.get_class_names()[first : first + len(names)] == names
        assert dataset.class_templates()[first : first + len(names)] == [streams.mtil_templates(domain)] * len(names)
        first += len(names)
    assert first == dataset.N_CLASSES


@pytest.mark.parametrize("how", [{"permute_classes": True}, {"custom_task_order": [5, 0, 1, 4, 2, 3]}])
def test_prompts_move_with_their_classes(build, how):
    """A name keeps its sentences, its size of task and its images, wherever the order puts it."""
    plain, moved = build(MtilTiny), build(MtilTiny, **how)
    expected = dict(zip(plain.get_class_names(), plain.class_templates(), strict=True))
    assert dict(zip(moved.get_class_names(), moved.class_templates(), strict=True)) == expected
    assert moved.get_class_names() != plain.get_class_names()
    if "custom_task_order" in how:
        assert moved.N_CLASSES_PER_TASK == [plain.N_CLASSES_PER_TASK[t] for t in how["custom_task_order"]]
    one, other = tasks(plain)[0][0].dataset, [train.dataset for train, _ in tasks(moved)]
    picture, name = pixels(one)[0], plain.get_class_names()[one.targets[0]]
    (found,) = [int(s.targets[i]) for s in other for i in range(len(s)) if torch.equal(pixels(s)[i], picture)]
    assert moved.get_class_names()[found] == name


def test_nothing_that_has_sides_is_mirrored():
    for cls in (MtilTiny, CloveTinyFunction, CloveTinyScene):
        assert not any(isinstance(step, RandomHorizontalFlip) for step in cls.TRANSFORM.transforms)
    assert any(isinstance(step, RandomHorizontalFlip) for step in SeqTiny.TRANSFORM.transforms)


# ---- questions


def test_each_function_task_asks_its_kind(build):
    dataset = build(CloveTinyFunction)
    for kind, (train, test) in zip(QUESTION_KINDS, tasks(dataset), strict=True):
        for split in (train.dataset, test.dataset):
            assert len(split) == (40 if split is train.dataset else 20)
            asked = [split.samples.questions[row] for row in split.rows]
            assert all(re.match(FIRST_WORDS[kind], question) for question in asked)
            own = ANSWERS[kind]
            assert {dataset.CLASS_NAMES[label] for label in split.targets} <= set(own)


def test_each_scene_task_shows_its_scene(build):
    dataset = build(CloveTinyScene)
    for t, (train, _) in enumerate(tasks(dataset)):
        assert torch.equal(pixels(train.dataset), streams.clove_tiny_scene(t, True)["images"])
        asked = {train.dataset.samples.questions[row].split()[0] for row in train.dataset.rows}
        assert asked == {"what", "how", "where", "are"}
    assert not set(dataset.CLASS_NAMES) & {"meadow", "desert"}


def test_label_is_the_most_frequent_answer(build):
    dataset = build(CloveTinyFunction)
    samples, raw = dataset.samples(True), [streams.clove_tiny_function(t, True) for t in range(6)]
    given = [row for part in raw for row in part["answers"]]
    for i in range(0, len(given), 7):
        counts = {a: given[i].count(a) for a in given[i]}
        assert dataset.CLASS_NAMES[samples.targets[i]] == max(counts, key=counts.get)
    assert [a for part in raw for a in part["answer"]] == [dataset.CLASS_NAMES[t] for t in samples.targets]
    assert samples.extras["soft"].shape == (240, len(dataset.CLASS_NAMES))
    assert len(set(dataset.CLASS_NAMES)) == len(dataset.CLASS_NAMES)


def test_soft_score_is_the_mean_over_nine_annotators():
    """The official definition, spelled out: every nine of the ten, min(matches / 3, 1), averaged."""
    for n in range(11):
        given = [True] * n + [False] * (10 - n)
        subsets = [sum(given[:i] + given[i + 1 :]) for i in range(10)]
        expected = np.mean([min(matches / 3, 1) for matches in subsets])
        assert soft_scores(torch.tensor([[n]])).item() == pytest.approx(expected)


def test_a_likely_mistake_gets_part_of_the_credit(build):
    dataset = build(CloveTinyFunction)
    samples = dataset.samples(False)
    soft = samples.extras["soft"]
    second = soft.scatter(1, samples.targets[:, None], -1.0).argmax(1)  # the best answer that is not the label
    outputs = torch.nn.functional.one_hot(second, soft.shape[1]).float()
    credit = dataset.score(outputs, samples.targets, {"soft": soft})
    assert torch.allclose(credit, soft[torch.arange(len(soft)), second])
    assert 0 < credit.mean() < 1 and len(credit.unique()) > 2
    right = torch.nn.functional.one_hot(samples.targets, soft.shape[1]).float()
    assert dataset.score(right, samples.targets, {"soft": soft}).eq(1).all()


# ---- texts


def test_questions_come_back_from_their_tokens(build):
    samples, tokenizer = build(CloveTinyFunction).samples(True), TinyTokenizer.load(TINY_DIR / "vocab.json")
    for i in range(0, len(samples), 17):
        spaced = tokenizer.decode(samples.data.text[i].tolist())
        assert spaced.replace(" ", "") == samples.questions[i].replace(" ", "")
    assert (samples.data.text[:, -1] == tokenizer.end).any()  # cut to the longest


def test_another_clip_gets_its_own_tokens():
    import clip

    texts = ["what object is in the picture?", "where?", "what object is in the picture?"]
    found = tokens.tokenize(texts, Namespace(clip_backbone="ViT-B/32"))
    assert torch.equal(found, clip.tokenize(texts).long()[:, : found.shape[1]])
    assert not clip.tokenize(texts)[:, found.shape[1] :].any()
    with pytest.raises(UserError, match="shorten"):
        tokens.tokenize(["fish " * 100], Namespace(clip_backbone="ViT-B/32"))


@pytest.mark.parametrize("phases", [5, 10])
def test_captions_go_with_their_pictures(build, phases):
    dataset, raw = build(MmTiny, phases=phases), streams.mm_tiny(True)
    seen = []
    for t, (train, _) in enumerate(tasks(dataset)):
        split = train.dataset
        assert sorted(split.targets.unique().tolist()) == list(range(20 // phases * t, 20 // phases * (t + 1)))
        assert torch.equal(split.data.text, split.samples.data.text[split.rows])
        assert torch.equal(pixels(split), raw["images"][split.rows])
        assert [split.samples.captions[row] for row in split.rows] == [raw["captions"][row] for row in split.rows]
        seen += split.rows.tolist()
    assert len(seen) == len(set(seen)) == len(raw["captions"])
    assert not any("group" in caption for caption in raw["captions"])


def test_a_clip_that_cannot_read_the_captions_is_refused(build):
    with pytest.raises(UserError, match="captions --clip_backbone tiny-cluttered reads.*context length is 32"):
        build(MmTiny, clip_backbone="tiny").samples(True)


# ---- the cache


def test_a_stream_is_drawn_once(build, monkeypatch, tmp_path):
    first = build(MmTiny, base_path=str(tmp_path)).samples(True)
    real = streams.mm_tiny
    monkeypatch.setattr(streams, "mm_tiny", lambda *a: pytest.fail("drawn again"))
    again = build(MmTiny, base_path=str(tmp_path)).samples(True)
    assert again.fingerprint == first.fingerprint and again.captions == first.captions
    (path,) = (tmp_path / "tiny_world").glob("mm-tiny-train-*")
    path.write_bytes(path.read_bytes()[:-5] + b"12345")  # damaged: drawn anew
    monkeypatch.setattr(streams, "mm_tiny", real)
    assert build(MmTiny, base_path=str(tmp_path)).samples(True).fingerprint == first.fingerprint


def test_a_file_in_the_place_of_the_data_folder_is_named(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/tiny_world.*choose another --base_path"):
        build(MmTiny, base_path=str(tmp_path / "file")).samples(True)
    assert (tmp_path / "file").read_text() == ""


def test_settings_have_files_of_their_own(build):
    found = [
        build(SeqTiny, **kw).samples(False) for kw in ({}, {"shift": 0.2}, {"style": "noisy"}, {"picture_seed": 1})
    ]
    assert len({samples.fingerprint for samples in found}) == 4
    assert all(torch.equal(samples.targets, found[0].targets) for samples in found)


# ---- backbones


@pytest.fixture(scope="module")
def fused():
    torch.manual_seed(0)
    return clip_fused(7, "tiny").eval()


def pairs(n):
    draw = torch.Generator().manual_seed(3)
    text = load_clip("tiny").tokenize(["is there a fish?", "what color is the boat?", "where?"])
    return Pair(torch.randn(n, 3, 48, 48, generator=draw), text[torch.arange(n) % 3][:, :12])


def test_fused_features_by_hand(fused):
    x, clip = pairs(5), load_clip("tiny")
    with torch.no_grad():
        image, text = (normalize(f, dim=1) for f in (clip.encode_image(x.image), clip.encode_text(x.text)))
        expected = torch.cat([image * 128**0.5, text * 128**0.5, 128 * image * text], 1)
        out, features = fused(x, returnt="both")
        assert torch.allclose(features, expected, atol=1e-4)
        assert torch.allclose(out, expected @ fused.classifier.weight.T + fused.classifier.bias, atol=1e-4)
        assert torch.allclose(fused(x[2:3]), out[2:3], atol=1e-5)


def test_fused_trains_both_towers(fused):
    fused(pairs(3)).sum().backward()
    assert fused.clip.clip.visual.conv1.weight.grad.abs().sum() > 0
    assert fused.clip.clip.token_embedding.weight.grad.abs().sum() > 0
    fused.zero_grad()


def test_visual_sees_the_picture_alone(fused):
    torch.manual_seed(0)
    net, x = clip_visual(7, "tiny").eval(), pairs(3)
    assert isinstance(net, ClipVisual) and isinstance(fused, ClipFused)
    with torch.no_grad():
        assert torch.equal(net(x), net(x.image))
    with pytest.raises(UserError, match="clip-visual"):
        fused(x.image)
    with pytest.raises(UserError, match="48 pixels"):
        net(torch.zeros(1, 3, 32, 32))


# ---- runs


@pytest.fixture
def run(base, tmp_path):
    def start(*argv):
        common = [
            "--base_path",
            base,
            "--results_path",
            str(tmp_path),
            "--seed",
            "0",
            "--non_verbose",
            "1",
            "--device",
            "cpu",
        ]
        assert main.main([*argv, *common]) == 0
        return newest_record(tmp_path)

    return start


def test_mtil_scores_of_zero_shot_clip(run, build, capsys):
    """Nothing is trained, so columns are constant: transfer is the mean without the first domain, avg equals last."""
    rows = run("--model", "clip", "--dataset", "mtil-tiny", "--mtil_order", "II")
    summary, clip = rows[-1]["summary"], load_clip("tiny")
    own = []
    with torch.no_grad():
        for domain in streams.MTIL_ORDERS["II"]:
            raw, template = streams.mtil_tiny(domain, False), streams.mtil_templates(domain)[0]
            prompts = clip.tokenize([template.format(name) for name in streams.mtil_names(domain)])
            keys = normalize(clip.encode_text(prompts), dim=1)
            best = (clip.encode_image(clip.normalize_images(raw["images"])) @ keys.T).argmax(1)
            own.append(100 * (best == raw["labels"]).double().mean().item())
    assert summary["mtil_transfer"] == pytest.approx(np.mean(own[1:]))
    assert summary["mtil_avg"] == pytest.approx(np.mean(own)) == pytest.approx(summary["mtil_last"])
    assert rows[1]["scores"]["task_il"] == pytest.approx(own)
    assert "mtil, transfer" in capsys.readouterr().out


def test_a_method_without_unseen_names_has_the_last_row_only(run):
    summary = run("--model", "ridge", "--dataset", "mtil-tiny")[-1]["summary"]
    assert summary["mtil_last"] == pytest.approx(summary["task_il_last"])
    assert "mtil_transfer" not in summary and "mtil_avg" not in summary


def test_vqa_scores_have_their_own_names(run, build, capsys):
    """The record's matrix against soft credit and matches counted here, from the predictions of a second model."""
    summary = run("--model", "ridge", "--dataset", "clove-tiny-function", "--stop_after", "1")[-1]["summary"]
    assert "vqa, final average" in capsys.readouterr().out
    assert {"vqa_last", "vqa_avg", "vqa_forgetting", "exact_match_last"} <= set(summary)
    assert not [name for name in summary if name.startswith(("class_il", "task_il"))]
    clip, dataset = load_clip("tiny"), build(CloveTinyFunction)

    def rows(split):
        text = clip.encode_text(split.data.text)
        image = clip.encode_image(clip.normalize_images(split.data.image))
        parts = [normalize(f, dim=1) for f in (image, text)]
        return normalize(torch.cat([*parts, parts[0] * parts[1] * 128**0.5], 1), dim=1).double()

    with torch.no_grad():
        (train0, test0), (train1, test1), *_ = tasks(dataset)
        H, Y = (
            torch.cat([rows(t.dataset) for t in (train0, train1)]),
            torch.cat([t.dataset.targets for t in (train0, train1)]),
        )
        W = torch.linalg.solve(H.T @ H + 0.1 * torch.eye(384).double(), H.T @ torch.eye(dataset.N_CLASSES).double()[Y])
        soft, exact = [], []
        for split in (test0.dataset, test1.dataset):
            best = (rows(split) @ W).argmax(1)
            soft.append(100 * split.soft[torch.arange(len(best)), best].mean().item())
            exact.append(100 * (best == split.targets).double().mean().item())
    assert summary["vqa_last"] == pytest.approx(np.mean(soft), abs=1e-3)
    assert summary["exact_match_last"] == pytest.approx(np.mean(exact), abs=1e-3)


@pytest.mark.parametrize("dataset", ["clove-tiny-scene", "mm-tiny"])
def test_replay_trains_on_pairs(run, dataset):
    rows = run(
        "--model",
        "er",
        "--dataset",
        dataset,
        "--buffer_size",
        "20",
        "--lr",
        "0.01",
        "--n_epochs",
        "1",
        "--stop_after",
        "1",
    )
    assert rows[-1]["status"] == "done" and rows[1]["stored_bytes"]
