"""docs/data.md has one row for each registered dataset, and is right about what the script fetches."""

import re

import pytest

from datasets import get_dataset_names
from datasets.utils.mtil_protocol import DOMAINS
from scripts import prepare_data
from utils.cli import registry

TEXT = (registry.ROOT / "docs" / "data.md").read_text()
ROWS = re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", TEXT, re.M)
FETCHED = {*prepare_data.SOURCES, *prepare_data.ARCHIVES, "mtil", "xtail"}


def test_each_dataset_has_one_row():
    assert sorted(name for name, _ in ROWS) == sorted(get_dataset_names())


@pytest.mark.parametrize("name,row", ROWS, ids=[name for name, _ in ROWS])
def test_how_to_get_it_is_what_the_script_does(name, row):
    how = row.split("|")[-1]
    assert ("`prepare" in how) == (name in FETCHED)
    by_hand = name in prepare_data.THEN_BY_HAND or name in {"mtil", "xtail", "seq-folder"}
    assert ("`prepare`" in how) == (name in FETCHED and not by_hand)
    procedural = "nothing to do" in how
    assert procedural == ("tiny" in name)
    assert ("*not run*" in how) != procedural


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_stand_where_they_are_read(domain):
    row = re.search(rf"^\| {domain} \|(.*)$", TEXT, re.M).group(1)
    assert f"`{DOMAINS[domain].place}`" in row and DOMAINS[domain].source in row
    assert not DOMAINS[domain].coop or f"`{DOMAINS[domain].coop[0]}`" in row


@pytest.mark.parametrize("dataset,asks", [("mtil", False), ("xtail", True)])
def test_the_lists_of_xtail_are_asked_for(dataset, asks, tmp_path, monkeypatch):
    fetched = []
    for name in prepare_data.CROSS_DOMAIN:
        monkeypatch.setattr(f"torchvision.datasets.{name}", lambda *_, name=name, **__: fetched.append(name))
    with pytest.raises(OSError, match="by hand") as failure:
        prepare_data.prepare(dataset, tmp_path)
    wanted = [domain.coop[0] for domain in DOMAINS.values() if domain.coop]
    assert sorted(wanted) == sorted(prepare_data.COOP_LISTS)
    assert all((str(tmp_path / path) in str(failure.value)) == asks for path in wanted)
    assert ("CIFAR100" in fetched) != asks
