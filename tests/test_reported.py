"""Tables of one protocol and one set of weights each, published numbers below ours, and their file."""

import csv
import json
import re

import pytest

from scripts import report, reported
from scripts.reporting import arms, page, payload, rows
from tests.test_report import record
from utils.cli import protocols, registry

TAG = "open_clip:ViT-B-16/laion400m_e32"


def run(folder, name, method="clip", dataset="seq-cifar100", protocol="c3box/b0", last=70.0, tag=TAG, **more):
    """A record of a finished run that follows a protocol."""
    deviations, sha = more.pop("deviations", {}), more.pop("sha256", None)
    record(folder / name, method, last=last, dataset=dataset, clip_backbone=tag, accuracy_weighting="images", **more)
    path = folder / name / "record.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if protocol:
        sha = sha or protocols.find(protocol, dataset).sha256
        lines[0]["preset"] = {"name": protocol, "sha256": sha, "deviations": deviations}
    lines[0]["weights_sha256"] = f"sha of {tag}"
    lines[-1]["summary"]["class_il_last_images"] = last
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file of published numbers of our own making."""
    values = [
        ("clip", "seq-cifar100", "c3box/b0", TAG, "class_il_last_images", 68.5, "Paper A"),
        ("clip", "seq-cifar100", "c3box/b0", TAG, "class_il_last_images", 69.0, "Paper B"),
        ("clip", "seq-cifar100", "c3box/b0", "ViT-B/16", "class_il_last_images", 66.0, "Paper C"),
        ("clip", "seq-cifar100", "", TAG, "class_il_last_images", 65.0, "Paper D"),
        ("clip", "seq-cifar100", "rapf/10-10", "ViT-B/16", "class_il_last_images", 60.0, "Paper E"),
        ("er", "seq-cifar100", "c3box/b0", TAG, "class_il_last_images", 99.0, "Paper F"),
    ]
    path = tmp_path / "reported.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(reported.Reported._fields)
        writer.writerows([*row, "yes", row[0], "a setting"] for row in values)
    monkeypatch.setattr(reported, "FILE", path)
    reported.table.cache_clear()
    yield path
    reported.table.cache_clear()


def lines(folder):
    runs, broken = report.load(folder)
    assert not broken
    return {found.heading: rows.lines_of(found) for found in rows.all_tables(arms.grouped(runs))}


def test_published_numbers_stand_below_ours_with_the_difference(tmp_path, published):
    run(tmp_path / "runs", "a", last=70.0)
    ((cells, marks),) = lines(tmp_path / "runs").values()
    column = cells[0].index("class-il, final accuracy over images")
    told = {row[0].split("(")[0]: (row[column], mark[column]) for row, mark in zip(cells[2:], marks[2:], strict=True)}
    assert told == {
        "reported: Paper A ": ("68.5 (+1.50)", ""),
        "reported: Paper B ": ("69 (+1.00)", ""),
        "reported: Paper C ": ("66", "grey"),
        "reported: Paper D ": ("65", "grey"),
    }
    assert column == 2, "the protocol's own weighting is the first column"


def test_a_deviation_or_an_older_preset_does_not_compare(tmp_path, published):
    run(tmp_path / "runs", "a", deviations={"shots": {"protocol": None, "given": 5}}, shots=5)
    run(tmp_path / "runs", "b", sha256="0123456789ab")
    for cells, marks in lines(tmp_path / "runs").values():
        assert {row[0].split("(")[0] for row in cells[2:]} == {f"reported: Paper {p} " for p in "ABD"}
        assert all("grey" in mark for mark in marks[2:]) and not any("+" in cell for row in cells[2:] for cell in row)


def test_no_table_spans_two_hashes_or_weights(tmp_path, published):
    """Four arms of one method: another hash, other weights, a deviation; each has its own table, none is bold."""
    folder = tmp_path / "runs"
    run(folder, "a", seed=0)
    run(folder, "b", seed=1, sha256="0123456789ab")
    run(folder, "c", seed=2, tag="ViT-B/16")
    run(folder, "d", seed=3, deviations={"shots": {"protocol": None, "given": 5}})
    found = lines(folder)
    assert len(found) == 4 and all(cells[1][1] == "1" for cells, _ in found.values())
    assert not any("best" in mark for _, marks in found.values() for mark in marks)
    assert any("but --shots" in heading for heading in found)


def test_seeds_of_one_protocol_are_one_row_and_the_best_is_marked(tmp_path, published, capsys):
    folder = tmp_path / "runs"
    for seed, last in enumerate((60.0, 62.0, 64.0)):
        run(folder, f"a{seed}", seed=seed, last=last)
    run(folder, "b", method="ncm", last=70.0)
    assert report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^clip.* 3 +62\.00 ± 5\.0 ", out, re.M)
    assert re.search(r"^ncm.* 1 +70\.00 \*", out, re.M)
    assert page.APART in out and "protocol c3box/b0" in out
    text = (folder / "report.html").read_text()
    assert re.search(r"<td[^>]* class=best>70.00</td>", text) and "nothing is averaged" in text
    assert len(re.findall(r'<tr class="reported grey"', text)) == 2 and ">65</td>" in text


def test_the_lowest_forgetting_is_the_best(tmp_path, published):
    folder = tmp_path / "runs"
    for name, method, worst in (("a", "clip", 30.0), ("b", "ncm", 5.0)):
        run(folder, name, method=method)
        path = folder / name / "record.jsonl"
        path.write_text(path.read_text().replace('"class_il_last_images"', f'"class_il_forgetting": {worst}, "x_y"'))
    runs, _ = report.load(folder)
    (group,) = arms.tables(next(iter(arms.grouped(runs).values())))
    best = rows.best_of(group, ["class_il_forgetting"])
    assert [group[n][0].args["model"] for n in best["class_il_forgetting"]] == ["ncm"]
    assert rows.best_of(group, ["class_il_last"]) == {"class_il_last": {0, 1}}, "equal ones are both the best"


def test_reported_needs_no_run(capsys):
    reported.table.cache_clear()
    assert report.main(["--reported", "seq-cifar100", "--protocol", "c3box"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ncm +c3box/b0 +class_il_last_images +76\.63 ", out, re.M)  # SimpleCIL
    assert {line.split()[1] for line in out.splitlines()[2:]} == {"c3box/b0", "c3box/bhalf"}


def test_contradicting_sources_are_all_shown(published, capsys):
    assert report.main(["--reported", "seq-cifar100", "--protocol", "c3box/b0"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[3] for line in out.splitlines() if "sources differ" in line] == ["68.5", "69"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--reported", "no-such-set"], "no published number of that data set"),
        (["--reported", "seq-cifar100", "--protocol", "no-such"], "unknown protocol"),
        (["--reported", "seq-cifar100", "--protocol", "xtail"], "no published number under protocol xtail"),
        (["--protocol", "c3box"], "needs --reported"),
    ],
)
def test_what_is_refused(argv, told, capsys):
    assert report.main(argv) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


def test_every_row_of_the_file_has_a_source_and_known_names():
    reported.table.cache_clear()
    every = reported.table()
    known = {f"{name}/{v}" if v else name for name in protocols.names() for v in variants(name)}
    assert len(every) > 1500
    for row in every:
        assert row.source.strip() and row.verified.strip() and row.setting.strip()
        assert row.protocol in known | {"", "pilot"}, row
        assert row.method == registry.canonical(row.method)
        assert "class_il" not in row.metric or 0 <= row.value <= 100


def variants(name):
    found = protocols.content(name)
    own = [(entry or {}).get("variants") or found.get("variants") or [""] for entry in found["datasets"].values()]
    return {v for group in own for v in group}


def test_a_row_without_a_source_is_an_error(published):
    published.write_text(published.read_text().replace("Paper A", ""))
    reported.table.cache_clear()
    with pytest.raises(Exception, match="line 2: no source"):
        reported.table()


@pytest.mark.parametrize("name", ["../c3box", "c3box\0", "", "c3box/no-such", "<b>", "c" * 5000])
def test_a_preset_with_a_strange_name_is_shown_and_compares_with_nothing(name, tmp_path, published):
    run(tmp_path / "runs", "a", sha256="0123456789ab")
    path = tmp_path / "runs/a/record.jsonl"
    path.write_text(path.read_text().replace('"name": "c3box/b0"', f'"name": {json.dumps(name)}'))
    ((found,),) = next(iter(arms.grouped(report.load(tmp_path / "runs")[0]).values()))
    assert reported.follows(found) == ""
    assert report.main([str(tmp_path / "runs")]) == 0


def test_probe_curves_start_at_the_untouched_model(tmp_path, published):
    run(tmp_path / "runs", "a")
    path = tmp_path / "runs/a/record.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    for t, row in enumerate(row for row in written if row["type"] == "task"):
        row |= {"probes": {"x": 80.0 - t}, "probes_untouched": {"x": 90.0}}
    written[-1]["summary"] |= {"probe_x_last": 79.0, "probe_x_drop": 11.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    (found,), _ = report.load(tmp_path / "runs")
    assert payload.probe_curves([found]) == {"x": [[90.0, 80.0, 79.0]]}
    ((cells, _),) = lines(tmp_path / "runs").values()
    assert cells[0][-2:] == ["probe x drop", "probe x last"] and cells[1][-2:] == ["11.00", "79.00"]


def test_no_table_spans_two_weights_of_one_name(tmp_path, published):
    """The tag is a name; the digest of the weights counts too."""
    folder = tmp_path / "runs"
    for name, seed in (("a", 0), ("b", 1)):
        run(folder, name, seed=seed)
    path = folder / "b" / "record.jsonl"
    path.write_text(path.read_text().replace("sha of ", "another sha of "))
    assert len(lines(folder)) == 2
