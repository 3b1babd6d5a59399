"""docs/data.md is what the data set classes declare, with one row for each stream."""

import re

import pytest

from datasets import get_dataset_names
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.sources import SOURCES
from scripts import data_page, prepare_data
from utils.cli import registry

TEXT = data_page.PAGE.read_text()
ROWS = re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", TEXT, re.M)


def test_the_page_is_what_the_script_writes():
    assert data_page.page() == TEXT, "run python scripts/data_page.py"


def test_each_dataset_has_one_row_and_there_are_many():
    assert sorted(name for name, _ in ROWS) == sorted(get_dataset_names())
    assert len(registry.index("dataset")) >= 50


def test_every_row_says_how_to_get_it():
    for name, row in ROWS:
        how = row.split("|")[-1]
        assert ("nothing to do" in how) == ("tiny" in name and name != "seq-tinyimg")
        assert ("*not run*" in how) != ("nothing to do" in how)
    ways = {name: row.split("|")[-1].split(";")[0].strip() for name, row in ROWS}
    assert ways["seq-dtd"] == "`prepare`" and ways["seq-mit67"] == "hand" and ways["mtil"] == "`prepare + hand`"


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_stand_where_they_are_read(domain):
    row = re.search(rf"^\| {domain} \|(.*)$", TEXT, re.M).group(1)
    assert f"`{DOMAINS[domain].place}`" in row and DOMAINS[domain].source in row
    assert not DOMAINS[domain].coop or f"`{DOMAINS[domain].coop[0]}`" in row


@pytest.mark.parametrize("dataset,asks", [("mtil", False), ("xtail", True)])
def test_the_lists_of_xtail_are_asked_for(dataset, asks, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(prepare_data, "prepare_source", lambda source, base: fetched.append(source))
    with pytest.raises(OSError, match="by hand") as failure:
        prepare_data.prepare(dataset, tmp_path)
    wanted = [domain.coop[0] for domain in DOMAINS.values() if domain.coop]
    assert all((str(tmp_path / path) in str(failure.value)) == asks for path in wanted)
    assert (SOURCES["cifar100"] in fetched) != asks
