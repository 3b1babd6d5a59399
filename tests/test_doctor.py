"""doctor.py: what is on a machine with nothing, with whole files, and with files that are missing or damaged."""

import hashlib
from pathlib import Path

import pytest

from backbone import clip_files
from datasets import get_dataset_class, get_dataset_names
from datasets.utils.sources import Archive, Source
from scripts import doctor, prepare_data
from tests import fabricate, fabricate_mtil
from tests import fabricate_streams as streams


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*names) -> (exit code, lines of the table, lines of stderr); no weights are on the machine."""
    monkeypatch.setattr(clip_files, "CACHE_DIR", tmp_path / "clip cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*names: str):
        monkeypatch.setattr("sys.argv", ["doctor.py", *names, "--base_path", str(tmp_path)])
        code = doctor.main()
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


def states(lines: list[str]) -> dict[str, str]:
    start = next(k for k, line in enumerate(lines) if line.startswith("name "))
    place = lines[start].index("state")
    return {line[:place].strip(): line[place:].split("  ")[0] for line in lines[start + 1 :]}


def test_a_machine_with_nothing(run):
    code, out, err = run()
    found = states(out)
    assert code == 0 and not err and set(get_dataset_names()) < set(found)
    assert found["seq-tiny"] == "generated" and found["seq-folder"] == "your own" and found["tiny"] == "present"
    nothing = {name for name, state in found.items() if state == "absent"}
    assert len(nothing) >= 50 and {"mtil", "core50", "seq-dtd", "ViT-B/16", "ViT-L/14"} <= nothing
    assert [line.split()[0] for line in out[:5]] == ["Python", "torch", "CUDA", "threads", "disk"]


def test_what_was_asked_for_is_said_in_one_line_each(run, tmp_path):
    code, _, err = run("seq-cifar100", "ViT-B/16", "tiny", "seq_tiny", "vit-b16")
    assert code == 2 and len(err) == 3
    assert (
        err[0].startswith("seq-cifar100: absent") and f"prepare_data.py seq-cifar100 --base_path {tmp_path}" in err[0]
    )
    assert err[1].startswith("ViT-B/16: absent") and "--clip_download 1" in err[1]
    assert err[2] == "vit-b16: unknown: neither a data set nor weights; closest: ViT-B/16, ViT-L/14, ViT-B/32"
    assert run("tiny", "seq-tiny")[0] == 0


def test_whole_files_then_fewer_then_damaged(run, tmp_path):
    root = streams.chestx(tmp_path)
    assert run("seq-chestx")[0] == 0
    image = sorted((root / "images_002" / "images").iterdir())[0]
    content = image.read_bytes()
    image.write_bytes(content[:40])
    code, out, err = run("seq-chestx")
    assert (code, states(out)["seq-chestx"]) == (2, "corrupt") and str(image) in err[0] and len(err) == 1
    assert states(run()[1])["seq-chestx"] == "present", "the short table does not open images"
    image.unlink()
    code, out, err = run("seq-chestx")
    assert states(out)["seq-chestx"] == "incomplete" and image.name in err[0]
    (root / "test_list.txt").unlink()
    assert f"{root / 'test_list.txt'} does not exist" in run("seq-chestx")[2][0]
    streams.svhn(tmp_path)
    path = tmp_path / "svhn" / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:300])
    assert states(run()[1])["seq-svhn"] == "corrupt"


def test_fewer_images_than_published_and_changed_ones(run, tmp_path):
    fabricate_mtil.pets(tmp_path), fabricate.cifar10(tmp_path, 100, 20)
    code, out, err = run("seq-pets", "seq-cifar10")
    assert code == 2 and states(out) == {"seq-pets": "incomplete", "seq-cifar10": "corrupt"}
    assert "74 of 7,349 images are there" in err[0] and "other than the published ones" in err[1]


def test_an_interrupted_download_is_incomplete(run, tmp_path, monkeypatch):
    source = Source(("set",), "host", "a file", (Archive("https://host/a.tgz", None, "."),))
    monkeypatch.setattr(get_dataset_class("seq-pets"), "FILES", (source,))
    (tmp_path / "set").mkdir()
    prepare_data.mark_of(tmp_path / "a.tgz").write_text(prepare_data.BEGUN)
    _, out, err = run("seq-pets")
    assert states(out)["seq-pets"] == "incomplete" and f"fetching {tmp_path / 'a.tgz'} was interrupted" in err[0]


@pytest.mark.parametrize("place", ["clip cache", "clip"])
def test_weights(run, tmp_path, monkeypatch, place):
    path = tmp_path / place / "ViT-B-16.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert states(run("ViT-B/16")[1])["ViT-B/16"] == "corrupt"
    right = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(clip_files, "published", lambda: {"ViT-B/16": (f"https://host/{right}/ViT-B-16.pt", right)})
    assert run("ViT-B/16")[0] == 0
    other = tmp_path / "other.pt"
    other.write_bytes(b"no weights")
    code, _, err = run(str(other), "open_clip:ViT-B-16/none", "timm:no_such_net")
    assert code == 2 and len(err) == 3 and str(Path(other)) in err[0] and "does not have a model" in err[2]
