"""Interrupted downloads, damaged or malicious archives: partial files are never accepted, no file leaves its folder."""

import gzip
import hashlib
import io
import re
import shutil
import tarfile
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datasets import get_dataset_class
from datasets.utils.sources import SOURCES, Archive, Source
from scripts import prepare_data
from scripts.prepare_data import download, fetch, unpack

CONTENT = bytes(range(256)) * 40


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; `how` is the failure, `asked` collects the requests."""

    content, ranges, cut, length, asked = CONTENT, True, None, True, []
    claimed = None  # a length that is not true

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted.group(1)) if wanted else 0
        type(self).asked.append(start)
        if wanted and type(self).ranges and start >= len(type(self).content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = wanted and type(self).ranges
        body = type(self).content[start if part else 0 :]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(type(self).content) - 1}/{len(type(self).content)}")
        if type(self).length:
            self.send_header("Content-Length", str(type(self).claimed or len(body)))
        self.end_headers()
        self.wfile.write(body[: type(self).cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    kind = type("OneServer", (Server,), {"asked": []})
    host = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    kind.url = f"http://127.0.0.1:{host.server_port}/set.zip"
    yield kind
    host.shutdown()
    host.server_close()


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("md5", [None, hashlib.md5(CONTENT).hexdigest()], ids=["no md5", "md5"])
def test_a_download_that_broke_off_goes_on(server, tmp_path, ranges, md5, capsys):
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(OSError, match="stopped at 1000 of 10240 bytes; run the command again to continue from there"):
        fetch(server.url, md5, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip.part"]
    server.cut = None
    assert fetch(server.url, md5, tmp_path).read_bytes() == CONTENT
    assert server.asked == [0, 1000] and not (tmp_path / "set.zip.part").exists()
    fetch(server.url, md5, tmp_path)
    assert len(server.asked) == 2, "what is whole is not fetched again"


def test_what_is_left_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(bytes(20_000))
    assert fetch(server.url, None, tmp_path).read_bytes() == CONTENT
    (tmp_path / "set.zip").unlink()
    (tmp_path / "set.zip.part").write_bytes(bytes(50))
    with pytest.raises(OSError, match="is published; run the command again"):
        fetch(server.url, hashlib.md5(CONTENT).hexdigest(), tmp_path)
    assert not (tmp_path / "set.zip.part").exists()
    assert fetch(server.url, hashlib.md5(CONTENT).hexdigest(), tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_damaged_later_is_fetched_again(server, tmp_path):
    """Also without a published checksum."""
    path = fetch(server.url, None, tmp_path)
    path.write_bytes(CONTENT[:77])
    assert fetch(server.url, None, tmp_path).read_bytes() == CONTENT and server.asked == [0, 0]


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tarred(path, members: dict[str, bytes], mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def archive(path, members):
    return (
        zipped(path, members)
        if path.suffix == ".zip"
        else tarred(path, members, "w" if path.suffix == ".tar" else "w:gz")
    )


GOOD = {f"in/{k}.txt": bytes([65 + k]) * 5000 * (k + 1) for k in range(5)}
KINDS = ["a.zip", "a.tar", "a.tgz", "a.tar.gz"]


@pytest.mark.parametrize("name", KINDS)
def test_good_archives(tmp_path, name):
    unpack(archive(tmp_path / name, GOOD), tmp_path / "to")
    assert {f"in/{p.name}": p.read_bytes() for p in (tmp_path / "to" / "in").iterdir()} == GOOD


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, "between"])
@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_archive_is_removed_and_fetched_again(server, tmp_path, name, share, capsys):
    """From a server that sends neither length nor checksum, so that no other check applies."""
    whole = archive(tmp_path / name, GOOD).read_bytes()
    (tmp_path / name).unlink()
    cut = (
        512 * 12 if share == "between" and name == "a.tar" else int((0.7 if share == "between" else share) * len(whole))
    )
    server.content, server.length, server.cut = whole, False, cut
    source = Source(("d/in",), "host", "5 files", (Archive(server.url.replace("set.zip", name), None, "d"),))
    with pytest.raises(OSError, match="is damaged .* and was removed; run the command again to fetch it"):
        prepare_data.prepare_source(source, tmp_path)
    assert not (tmp_path / "d" / name).exists()
    server.cut = None
    prepare_data.prepare_source(source, tmp_path)
    assert (tmp_path / "d" / "in" / "4.txt").read_bytes() == GOOD["in/4.txt"] and len(server.asked) == 2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("member", ["/tmp/out.txt", "../out.txt", "in/../../out.txt", "..\\out.txt"])
def test_members_that_leave_the_folder(tmp_path, name, member):
    path = archive(tmp_path / name, {member: b"x"})
    with pytest.raises(OSError, match="is outside .*to; unpacking stopped"):
        unpack(path, tmp_path / "to")
    assert not list(tmp_path.rglob("*out.txt")) and path.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        member = tarfile.TarInfo("in/link")
        member.type, member.linkname = kind, "in"
        file.addfile(member)
    with pytest.raises(OSError, match="'in/link', which is not a regular file"):
        unpack(tmp_path / "a.tar", tmp_path / "to")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("in/link")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc")
    with pytest.raises(OSError, match="'in/link', which is not a regular file"):
        unpack(tmp_path / "a.zip", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_bombs(tmp_path, name, monkeypatch):
    """Zeros, a thousand times smaller when packed; and a head that claims more than any disk has."""
    monkeypatch.setattr(prepare_data, "MOST_UNPACKED", 10_000)
    path = archive(tmp_path / name, {"zeros": bytes(3_000_000)})
    with pytest.raises(OSError, match="unpacks to more than"):
        unpack(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    monkeypatch.setattr(prepare_data, "MOST_UNPACKED", 2**80)
    head = tarfile.TarInfo("huge")
    head.size = 2**60
    (tmp_path / "b.tgz").write_bytes(gzip.compress(head.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    with pytest.raises(OSError, match="unpacks to more than"):
        unpack(tmp_path / "b.tgz", tmp_path / "to")


def test_the_command_line_ends_in_one_line(server, tmp_path, monkeypatch, capsys):
    source = Source(("isic",), "host", "a file", (Archive(server.url, None, "d"),))  # CONTENT is not a zip file
    monkeypatch.setattr(get_dataset_class("seq-isic"), "FILES", (source,))
    monkeypatch.setattr("sys.argv", ["prepare_data.py", "seq-isic", "--base_path", str(tmp_path)])
    assert prepare_data.main() == 2
    told = capsys.readouterr().err.splitlines()
    assert (
        len(told) == 2
        and told[0].startswith("warning: no checksum")
        and told[1].startswith("error: seq-isic could not")
    )


def test_download_without_anything_there(server, tmp_path):
    download(server.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT and server.asked == [0]


PAGE = b"<!DOCTYPE html><html><body>Too many people have asked for this file.</body></html>"


@pytest.mark.parametrize("checksum", [None, hashlib.md5(CONTENT).hexdigest()])
def test_a_page_instead_of_the_file(server, tmp_path, checksum):
    server.content = b"\n " + PAGE
    with pytest.raises(OSError, match="answers with a web page, .* save the file as .*set.zip$"):
        fetch(server.url, checksum, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("claimed, message", [(20_000, "stopped at 10240 of 20000 bytes"), (5000, "is published")])
def test_a_length_that_is_not_true(server, tmp_path, claimed, message):
    """A longer one is a download that broke off; of a shorter one only that much is read, which the checksum shows."""
    server.claimed = claimed
    with pytest.raises(OSError, match=message):
        fetch(server.url, hashlib.md5(CONTENT).hexdigest(), tmp_path)
    assert not (tmp_path / "set.zip").exists()


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(server, tmp_path):
    server.claimed = 2**62
    with pytest.raises(OSError, match=f"has {2**62} more bytes, but only [0-9]+ are free"):
        fetch(server.url, None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_sha256_is_told_by_its_length(server, tmp_path):
    fetch(server.url, hashlib.sha256(CONTENT).hexdigest(), tmp_path)
    with pytest.raises(OSError, match="has sha256"):
        fetch(server.url, "0" * 64, tmp_path)


def test_encryption_is_not_given_up_on_the_way():
    request = urllib.request.Request("https://host/a.zip")
    with pytest.raises(OSError, match="redirects to http://other/a.zip, which is not encrypted"):
        prepare_data.SameScheme().redirect_request(request, None, 302, "", {}, "http://other/a.zip")


def source_of(server, name: str = "set.zip") -> Source:
    return Source(("set/in",), "host", "5 files", (Archive(server.url.replace("set.zip", name), None, "set"),))


def test_two_processes_do_not_fetch_the_same_files(server, tmp_path):
    with (
        prepare_data.only_one(tmp_path, "set"),
        pytest.raises(OSError, match="another process is fetching .*set; wait"),
    ):
        prepare_data.prepare_source(source_of(server), tmp_path)
    assert not server.asked


def test_what_is_unpacked_is_not_unpacked_again(server, tmp_path, monkeypatch, capsys):
    server.content = archive(tmp_path / "a.tgz", GOOD).read_bytes()
    calls, real = [], prepare_data.unpack
    monkeypatch.setattr(prepare_data, "unpack", lambda *paths: calls.append(1) or real(*paths))
    for _ in range(2):
        prepare_data.prepare_source(source_of(server, "a.tgz"), tmp_path)
    assert len(calls) == 1 and len(server.asked) == 1
    shutil.rmtree(tmp_path / "set" / "in")
    prepare_data.prepare_source(source_of(server, "a.tgz"), tmp_path)
    assert len(calls) == 2 and len(server.asked) == 1 and (tmp_path / "set" / "in" / "4.txt").exists()


def test_files_put_there_by_hand_are_left_alone(server, tmp_path):
    (tmp_path / "set" / "in").mkdir(parents=True)
    prepare_data.prepare_source(source_of(server), tmp_path)
    assert not server.asked


def test_an_archive_in_an_archive(tmp_path):
    """As Caltech-101 comes."""
    inner = archive(tmp_path / "objects.tar.gz", GOOD).read_bytes()
    outer = archive(tmp_path / "outer.zip", {"folder/objects.tar.gz": inner, "folder/notes.txt": b"x"})
    prepare_data.unpack_once(outer, tmp_path / "to")
    assert (tmp_path / "to" / "in" / "4.txt").read_bytes() == GOOD["in/4.txt"]


def test_a_single_packed_file(tmp_path, monkeypatch):
    path = tmp_path / "labels-ubyte.gz"
    path.write_bytes(gzip.compress(CONTENT))
    unpack(path, tmp_path)
    assert (tmp_path / "labels-ubyte").read_bytes() == CONTENT
    monkeypatch.setattr(prepare_data, "MOST_UNPACKED", 10)
    monkeypatch.setattr(prepare_data, "RATIO", 1)
    (tmp_path / "labels-ubyte").unlink()
    path.write_bytes(gzip.compress(bytes(3_000_000)))
    with pytest.raises(OSError, match="unpacks to more than"):
        unpack(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["labels-ubyte.gz"]


def test_what_remains_is_named_with_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare_data.py", "seq_cars100", "--base_path", str(tmp_path)])
    monkeypatch.setattr(prepare_data, "prepare_source", lambda *_: None)
    monkeypatch.setattr(get_dataset_class("seq-cars100"), "FILES", (SOURCES["cars"], SOURCES["sun397"]))
    assert prepare_data.main() == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{tmp_path}/stanford_cars" in told and f"{tmp_path}/SUN397" in told
    monkeypatch.setattr("sys.argv", ["prepare_data.py", "seq-tiny"])
    assert prepare_data.main() == 0 and "nothing to fetch" in capsys.readouterr().out


@pytest.mark.parametrize("name", [b"\xa9x.txt", b"\0x.txt"], ids=["not UTF-8", "empty"])
def test_names_that_are_no_names(name, tmp_path):
    """A name marked as UTF-8 that is not, and one that is empty: the archive is damaged."""
    path = zipped(tmp_path / "a.zip", {"éx.txt": b"text"})
    path.write_bytes(path.read_bytes().replace("éx.txt".encode(), name + b"." * (7 - len(name))))
    with pytest.raises(OSError, match="is damaged .* and was removed"):
        unpack(path, tmp_path / "to")
    assert not path.exists()
