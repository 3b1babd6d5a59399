"""scripts/table_page.py on fabricated records: columns, the latest run of a seed, and how orders agree."""

import json

import pytest

from scripts import reported, table_page
from scripts.records import finished


def put(folder, model, last, seed=0, dataset="seq-tiny", protocol="tiny/b0", stamp="a", **summary):
    """A finished run of two tasks."""
    place = folder / dataset / model / f"{stamp}-{seed}"
    place.mkdir(parents=True)
    start = {
        "type": "start",
        "args": {"model": model, "dataset": dataset, "seed": seed},
        "git_commit": "0123456789abcd",
    }
    if protocol:
        start["preset"] = {"name": protocol, "sha256": "x", "deviations": {}}
    rows = [start]
    for t in (0, 1):
        costs = {"begin_task": 0.5, "train": 2.0, "end_task": 1.0, "evaluate": 0.25, "save": 9.0}
        rows.append({"type": "task", "task": t, "scores": {"class_il": [last] * (t + 1) + [None] * (1 - t)}})
        rows[-1] |= {"seconds": costs, "test_images": [40, 60][: t + 1], "parameters": {"trainable": 7 - t, "total": 9}}
    scores = {"class_il_last": last, "class_il_last_images": last + 1, "stored_bytes": 3 * 2**20} | summary
    rows.append({"type": "end", "status": "done", "summary": scores})
    (place / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Published final accuracies: four methods in one order, with two sources of one of them, and one elsewhere."""
    path = tmp_path / "reported.csv"
    rows = [("clip", 60), ("ncm", 70), ("ridge", 75), ("slda", 90), ("slda", 70), ("proof", 99)]
    lines = [f"{m},seq-cifar100,c3box/b0,W,class_il_last_images,{v},Paper,yes,{m},s" for m, v in rows]
    lines.append("clip,seq-imagenet-r,c3box/b0,W,class_il_last_images,10,Paper,yes,clip,s")
    lines.append("clip,seq-cifar100,,W,class_il_last_images,10,Paper,yes,clip,s")
    path.write_text("\n".join([",".join(reported.Reported._fields), *lines]) + "\n")
    monkeypatch.setattr(reported, "FILE", path)
    reported.table.cache_clear()
    yield
    reported.table.cache_clear()


def cells(page: str, first: str) -> list[list[str]]:
    """The cells of the rows that begin so."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == first]


def test_columns_of_a_run(tmp_path, published):
    put(tmp_path, "ncm", 50.0, future_unseen=30.0, ci_transfer=20.0, class_il_forgetting=5.0, class_il_avg_images=61.0)
    put(tmp_path, "ncm", 53.0, seed=1)
    put(tmp_path, "ncm", 10.0, seed=1, stamp="Z")  # sorted before the other: an earlier run of the same seed
    text = table_page.page(finished(tmp_path))
    (head,), (row,) = cells(text, "method"), cells(text, "`ncm`")
    found = dict(zip(head, row, strict=True))
    assert found["seeds"] == "2" and found["last"].startswith("52.5 ±")  # over images: 51 and 54
    assert found["unseen names"] == "30.0" and found["transfer"] == "20.0" and found["forgetting"] == "5.0"
    assert found["stored"].startswith("3.0") and found["trained"] == "7" and found["seconds"] == "7"
    assert found["images/s"] == "280"  # 40, then 40 and 60, in half a second
    assert "0123456789" in text and "## seq-tiny (tiny/b0)" in text


def test_a_column_without_values_is_not_there_and_domains_have_their_scores(tmp_path, published):
    put(tmp_path, "zscl", 10.0, dataset="mtil-tiny", protocol="", mtil_last=80.0, mtil_avg=70.0, mtil_transfer=60.0)
    text = table_page.page(finished(tmp_path))
    found = dict(zip(cells(text, "method")[0], cells(text, "`zscl`")[0], strict=True))
    assert found["last"] == "80.0" and found["average"] == "70.0" and found["transfer"] == "60.0"
    assert "unseen names" not in found and "## mtil-tiny\n" in text
    assert "No two orders share" in text


def test_orders_are_compared_between_streams_and_with_what_is_published(tmp_path, published):
    for model, seq, mtil in (("clip", 10, 40), ("ncm", 20, 30), ("ridge", 40, 20), ("slda", 30, 10)):
        put(tmp_path, model, float(seq))
        put(tmp_path, model, 0.0, dataset="mtil-tiny", protocol="tiny/order1", mtil_last=float(mtil))
    text = table_page.page(finished(tmp_path))
    rows = [row for row in cells(text, "seq-tiny (tiny/b0)") + cells(text, "mtil-tiny (tiny/order1)")]
    told = {(row[0], row[1]): row[2:] for row in rows}
    # seq-tiny 1 2 4 3 against 4 3 2 1: squared differences 9 + 1 + 4 + 4 = 18, rho 1 - 6 * 18 / 60; 1 of 6 pairs agrees
    streams = ("mtil-tiny (tiny/order1)", "seq-tiny (tiny/b0)")
    assert told.get(streams, told.get(streams[::-1])) == ["4", "-0.80", "-0.67"]
    # published 60, 70, 75, mean of 90 and 70 = 80: ranks 1 2 3 4 against 1 2 4 3
    assert told["seq-tiny (tiny/b0)", "seq-cifar100, c3box/b0, W"] == ["4", "+0.80", "+0.67"]
    assert not any("imagenet" in other for _, other in told)


def test_methods_stand_in_the_order_of_their_scores(tmp_path, published):
    for model, last in (("clip", 10.0), ("slda", 30.0), ("ncm", 20.0)):
        put(tmp_path, model, last)
    text = table_page.page(finished(tmp_path))
    assert [text.index(f"`{m}`") for m in ("slda", "ncm", "clip")] == sorted(
        text.index(f"`{m}`") for m in ("slda", "ncm", "clip")
    )


def test_equal_scores_have_no_order():
    same = dict.fromkeys("abcd", 1.0)
    assert table_page.agreement(same, {"a": 1, "b": 2, "c": 3, "d": 4}) is None
    assert table_page.agreement({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None


def test_no_records_are_a_line_and_no_page_is_written(tmp_path, capsys):
    page = tmp_path / "table.md"
    assert table_page.main([str(tmp_path / "none"), "--page", str(page)]) == 2
    assert "sweep.py protocol:tiny" in capsys.readouterr().err and not page.exists()
    put(tmp_path / "runs", "clip", 10.0)
    assert table_page.main([str(tmp_path / "runs"), "--page", str(page)]) == 0 and "`clip`" in page.read_text()
