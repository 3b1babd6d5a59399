"""Probes outside the stream: ranks against a loop, folders with captions, and that nothing is trained on them."""

import json
import math

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from datasets.utils import probes as sets
from tests import contract
from tests.clip_toys import toy
from tests.contract import ToyClasses
from tests.toys import toy_args
from utils.engine import probes
from utils.errors import UserError

PROBE = "toy-class-il"


def slow_rank(query, items, right):
    scores = [float(query @ item) for item in items]
    best = max(scores[n] for n in right)
    return 1 + sum(1 for n, score in enumerate(scores) if n not in right and score >= best)


def test_ranks_and_recall_against_a_loop():
    draw = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(12, 5, generator=draw), dim=1)
    owner = torch.arange(12).repeat_interleave(torch.tensor([5, 1, 2, 3] * 3))
    texts = normalize(images[owner] + 0.9 * torch.randn(len(owner), 5, generator=draw), dim=1)
    i2t = [slow_rank(image, texts, (owner == n).nonzero().flatten().tolist()) for n, image in enumerate(images)]
    t2i = [slow_rank(text, images, [int(owner[n])]) for n, text in enumerate(texts)]
    scores = probes.retrieval(images, texts, owner)
    for way, found in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            assert scores[f"{way}_r{k}"] == pytest.approx(100 * sum(r <= k for r in found) / len(found))
    assert 0 < scores["i2t_r1"] < 100 and 0 < scores["t2i_r1"] < scores["t2i_r5"]


def test_constant_features_do_not_score_and_equal_ones_do():
    """Ties count against a query: a tower that maps everything to one point would else be perfect."""
    owner = torch.arange(20)
    same = torch.ones(20, 4) / 2
    assert set(probes.retrieval(same, same, owner).values()) == {0.0}
    apart = torch.eye(20)
    assert set(probes.retrieval(apart, apart, owner).values()) == {100.0}


def test_ranks_in_parts_are_ranks_at_once(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    a, b = (normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (30, 40))
    right = torch.rand(30, 40, generator=draw) < 0.1
    right[:, 0] = True
    whole = probes.ranks(a, b, right)
    monkeypatch.setattr(probes, "ROWS", 7)
    assert torch.equal(probes.ranks(a, b, right), whole)


def test_last_and_drop_by_hand():
    rows = {"probes": {"x": [70.0, 64.0, 61.5, 66.0], "up": [50.0, 52.0], "new": [10.0]}}
    assert probes.summary(rows) == {
        "probe_x_last": 66.0,
        "probe_x_drop": 8.5,
        "probe_up_last": 52.0,
        "probe_up_drop": -2.0,
    }
    assert probes.of_task(rows)["probes_untouched"] == {"x": 70.0, "up": 50.0, "new": 10.0}
    assert probes.summary({}) == {} and probes.of_task({}) == {}


@pytest.mark.parametrize("name", ["finetune-clip", "clip", "coop"])
@pytest.mark.filterwarnings("ignore:probe")
def test_nothing_is_trained_on_a_probe(name):
    """The run with a probe ends with the same weights, memory, random numbers and costs as the run without."""
    ends = []
    own = {"csc": 0} if name == "coop" else {}
    for flags in (own, own | {"probe": PROBE}):
        made = toy(name, trained=True, **flags)
        state = {k: v for k, v in made.model.state_dict().items() if isinstance(v, torch.Tensor)}
        ends.append((state, contract.logits(made), torch.rand(3), made.summary["image_forwards"], made.summary))
    (a, logits_a, drawn_a, images_a, _), (b, logits_b, drawn_b, images_b, summary) = ends
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(logits_a, logits_b) and torch.equal(drawn_a, drawn_b) and images_a == images_b
    key = f"probe_{sets.key_of(PROBE)}"
    values = made.rows["probes"]["toy_class_il"]
    assert len(values) == 4 and summary[f"{key}_last"] == values[-1]
    untouched, words = toy(name, **own).model, (contract.NAMES, [["a photo of a {}."]] * 9)
    moved = not torch.allclose(made.model.probe_keys(*words), untouched.probe_keys(*words), atol=1e-5)
    assert moved == (name != "clip"), "a frozen model without prompts keeps its names"


@pytest.mark.filterwarnings("ignore:probe")
def test_a_probe_is_zero_shot_accuracy_among_all_names():
    made = toy("finetune-clip", trained=True, probe=PROBE)
    model = made.model
    probe = ToyClasses(toy_args()).complete()
    pictures = model.net.normalize_images(probe.samples(False).data)
    with torch.no_grad():
        images = normalize(model.net.encode_image(pictures).float(), dim=1)
        texts = model.net.encode_text(model.net.tokenize([f"a photo of a {n}." for n in contract.NAMES])).float()
    hit = (images @ normalize(texts, dim=1).T).argmax(1) == probe.samples(False).targets
    assert made.summary["probe_toy_class_il_last"] == pytest.approx(100 * float(hit.float().mean()))


def test_a_method_without_clip_is_refused():
    with contract.toys(), pytest.raises(UserError, match="a whole CLIP at its end; model er"):
        contract.build("er", trained=True, probe=PROBE)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "My Pictures"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (12, 8), "red").save(folder / name)
    return folder


def read(folder):
    return sets._of_folder(folder, toy_args())


def test_folders_with_captions(pictures):
    jsonl = pictures / "captions.jsonl"
    rows = [{"image": "b.png", "captions": [f"text {k}" for k in range(7)]}, {"image": "a.png", "captions": ["one"]}]
    jsonl.write_text("\n".join(json.dumps(row) for row in rows))
    probe = read(pictures)
    assert probe.name == "my_pictures" and probe.owner.tolist() == [0] * 5 + [1]
    assert probe.captions == [f"text {k}" for k in range(5)] + ["one"]
    assert [p.name for p in probe.loader.dataset.samples.paths] == ["b.png", "a.png"]
    jsonl.unlink()
    (pictures / "captions.csv").write_text('image,caption\na.png,"one, two"\nc.png,three\na.png,four\n')
    probe = read(pictures)
    assert probe.captions == ["one, two", "four", "three"] and probe.owner.tolist() == [0, 0, 1]
    (pictures / "captions.csv").unlink()
    images = [
        {"filename": "c.png", "split": "test", "sentences": [{"raw": "x"}, {"raw": "y"}]},
        {"filename": "a.png", "split": "train", "sentences": [{"raw": "z"}]},
    ]
    (pictures / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    assert read(pictures).captions == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("notes.txt", "", "no captions.jsonl"),
        ("captions.csv", "image,caption\nno.png,x\n", "no.png does not exist"),
        ("captions.csv", "image,caption\na.png,\n", "a.png has no caption"),
        ("captions.csv", "picture,text\na.png,x\n", "not a list of images with captions"),
        ("captions.jsonl", "{", "not a list of images with captions"),
        ("captions.jsonl", '{"image": "../a.png", "captions": ["x"]}', "does not exist"),
        ("captions.jsonl", "", "it is empty"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(pictures, name, text, told):
    (pictures / name).write_text(text)
    with pytest.raises(UserError, match=told) as error:
        read(pictures)
    assert len(str(error.value).splitlines()) == 1


def stream(**flags):
    return ToyClasses(toy_args(**flags)).complete()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("no-such-stream", "neither a stream"),
        (" , ", "--probe is empty"),
        ("seq-folder", "needs --folder_path"),
        ("mnist-360", "does not have a test set|batches|needs"),
        (f"{PROBE},{PROBE}", "two probes are called toy_class_il"),
    ],
)
@pytest.mark.filterwarnings("ignore:probe")
def test_words_that_are_no_probe(word, told, tmp_path):
    with contract.toys(), pytest.raises(UserError, match=told):
        sets.make_probes(stream(probe=word, base_path=str(tmp_path)))


def test_a_probe_without_its_files_tells_where_they_go(tmp_path):
    with pytest.raises(UserError, match="CUB_200_2011"):
        sets.make_probes(stream(probe="seq-cub200", base_path=str(tmp_path)))


def test_names_that_are_trained_are_told():
    with contract.toys(), pytest.warns(UserWarning, match="9 of its 9 names are classes of toy-class-il"):
        (probe,) = sets.make_probes(stream(probe=PROBE))
    assert probe.names == contract.NAMES and probe.templates == [["a photo of a {}."]] * 9


def test_flags_of_the_stream_do_not_reach_its_probe():
    with contract.toys(), pytest.warns(UserWarning):
        (probe,) = sets.make_probes(
            stream(probe=PROBE, custom_class_order=[8, 7, 6, 5, 4, 3, 2, 1, 0], classes="first:9")
        )
    assert probe.names == contract.NAMES
    assert torch.equal(probe.loader.dataset.targets, ToyClasses(toy_args()).complete().samples(False).targets)


def test_captions_of_the_picture_world(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "TINY_IMAGES", 12)
    probe = sets._tiny_captions(toy_args(base_path=str(tmp_path)))
    assert 6 <= len(probe.captions) <= 12 and not any("?" in text for text in probe.captions)
    assert probe.owner.tolist() == list(range(len(probe.captions))) == probe.loader.dataset.targets.tolist()


def test_the_tiny_probe_uses_another_style(monkeypatch):
    asked = []
    monkeypatch.setattr(sets, "_of_stream", lambda key, name, args, **own: asked.append((name, own)))
    monkeypatch.setattr(sets, "_tiny_captions", lambda args: None)
    for style in ("stitched", "blurred"):
        dataset = stream()
        dataset.style = style
        sets._probes_of("tiny", dataset)
    assert asked == [("seq-tiny", {"style": "blurred"}), ("seq-tiny", {"style": "noisy"})]


@pytest.mark.filterwarnings("ignore:probe")
def test_a_long_caption_loses_its_last_words():
    model = toy("clip", trained=True, stop_after=0).model
    long = " ".join(["cup"] * 500)
    short, cut = model.probe_texts(["cup"]), model.probe_texts([long])
    assert cut.shape == short.shape and math.isfinite(float(cut.sum()))
