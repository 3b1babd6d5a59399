"""FeatureStore: every row encoded once, three modes agree, damaged files and concurrency are handled."""

import multiprocessing
import os
import resource
import warnings

import numpy as np
import pytest
import torch

from datasets.utils.samples import ArraySamples, FileSamples
from utils import content, features
from utils.errors import UserError
from utils.features import FeatureStore

N, D = 50, 6


class Samples:
    """Images whose pixels are a function of the row."""

    def __init__(self, fingerprint="a"):
        self.fingerprint, self.asked = fingerprint, []

    def __len__(self):
        return N

    def images(self, rows):
        self.asked += rows.tolist()
        return (rows[:, None, None, None] * torch.tensor([1, 2, 3])[None, :, None, None]).to(torch.uint8)


class Encoder:
    """A fixed map of the pixel values, exact in fp32 whatever the batch."""

    dim, deterministic, batch_size = D, True, 7

    def __init__(self, key="e"):
        self.key = key

    def __call__(self, images):
        return images[:, 0, 0, :1].float() * torch.arange(1, D + 1)


def expected(rows):
    return rows[:, None].float() * torch.arange(1, D + 1)


@pytest.fixture(params=["disk", "ram", "off"])
def store(request, tmp_path):
    return FeatureStore(tmp_path, request.param, progress=False)


def test_rows_come_in_the_order_asked_with_repeats(store):
    rows = torch.tensor([9, 3, 3, 49, 0, 9])
    assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows))
    assert store.rows(Samples(), torch.tensor([], dtype=torch.long), Encoder()).shape == (0, D)


def test_each_row_is_encoded_once(store):
    samples, encoder = Samples(), Encoder()
    for rows in (torch.arange(20), torch.arange(10, 40).flip(0), torch.arange(N), torch.tensor([5, 5, 5])):
        assert torch.equal(store.rows(samples, rows, encoder), expected(rows))
    if store.mode == "off":
        assert store.forwards == 20 + 30 + N + 1
    else:
        assert store.forwards == N
        assert sorted(samples.asked) == list(range(N))


def test_batches_have_the_size_that_the_encoder_names(tmp_path):
    sizes = []

    class Counting(Encoder):
        batch_size = 3

        def __call__(self, images):
            sizes.append(len(images))
            return super().__call__(images)

    FeatureStore(None, "ram").rows(Samples(), torch.arange(8), Counting())
    assert sizes == [3, 3, 2]


def test_another_process_reads_what_was_written(tmp_path):
    FeatureStore(tmp_path).rows(Samples(), torch.arange(30), Encoder())
    again = FeatureStore(tmp_path)
    rows = torch.arange(25, 35)
    assert torch.equal(again.rows(Samples(), rows, Encoder()), expected(rows))
    assert again.forwards == 5


def test_a_live_store_sees_rows_written_meanwhile(tmp_path):
    first, second = FeatureStore(tmp_path), FeatureStore(tmp_path)
    first.rows(Samples(), torch.arange(5), Encoder())
    second.rows(Samples(), torch.arange(20), Encoder())
    first.rows(Samples(), torch.arange(20), Encoder())
    assert (first.forwards, second.forwards) == (5, 15)


@pytest.mark.parametrize("samples, encoder", [(Samples("b"), Encoder()), (Samples(), Encoder("f"))])
def test_other_samples_or_encoder_is_another_key(tmp_path, samples, encoder):
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(10), Encoder())
    store.rows(samples, torch.arange(10), encoder)
    assert store.forwards == 20
    assert len(list(tmp_path.iterdir())) == 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_records(path):
    path.write_bytes(path.read_bytes()[: 2 * (8 + 4 * D)])


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, drop_records, lambda path: path.write_bytes(b"")])
def test_damage_is_reported_once_and_mended(tmp_path, damage):
    rows = torch.arange(12)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    [path] = tmp_path.rglob("*.rows")
    damage(path)
    store = FeatureStore(tmp_path)
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows))
    assert len(caught) == 1
    assert store.forwards == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = FeatureStore(tmp_path)
        mended.rows(Samples(), rows, Encoder())
    assert mended.forwards == 0


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_many_small_segments_are_merged(tmp_path, mode):
    store = FeatureStore(tmp_path, mode)
    for row in torch.randperm(N, generator=torch.Generator().manual_seed(0)):
        assert torch.equal(store.rows(Samples(), row[None], Encoder()), expected(row[None]))
    rows = torch.arange(N)
    assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows))
    assert store.forwards == N
    assert all(len(t.segments) <= features.MAX_SMALL_SEGMENTS for t in store.tables.values())
    if mode == "disk":
        assert len(list(tmp_path.rglob("*.rows"))) <= features.MAX_SMALL_SEGMENTS
        fresh = FeatureStore(tmp_path)
        assert torch.equal(fresh.rows(Samples(), rows, Encoder()), expected(rows))
        assert fresh.forwards == 0


def test_a_long_encoding_is_kept_in_pieces(tmp_path, monkeypatch):
    """An encoder that dies half way: what was finished before is not computed again."""
    monkeypatch.setattr(features, "SEGMENT_BYTES", 10 * 4 * D)

    class Dying(Encoder):
        calls, batch_size = 0, 5

        def __call__(self, images):
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).rows(Samples(), torch.arange(N), Dying())
    store = FeatureStore(tmp_path)
    assert torch.equal(store.rows(Samples(), torch.arange(N), Encoder()), expected(torch.arange(N)))
    assert store.forwards == N - 20  # five batches of 5 were done, two pairs of them written


def write_concurrently(root, seed, go):
    rng = np.random.default_rng(seed)
    store = FeatureStore(root, progress=False)
    go.wait()
    for _ in range(60):
        rows = torch.from_numpy(rng.integers(0, N, size=3))
        if not torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows)):
            raise SystemExit(3)


def test_concurrent_writers_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    go = context.Event()
    workers = [context.Process(target=write_concurrently, args=(tmp_path, seed, go)) for seed in range(3)]
    for worker in workers:
        worker.start()
    go.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = torch.arange(N)
        assert torch.equal(FeatureStore(tmp_path).rows(Samples(), rows, Encoder()), expected(rows))
    assert not list(tmp_path.rglob("tmp-*"))


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """The kernel refuses the write half way (file size limit), as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = FeatureStore(tmp_path, progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (N * D, hard))
    try:
        with pytest.raises(UserError, match=f"cannot write features to {tmp_path}.*--features ram"):
            store.rows(Samples(), torch.arange(N), Encoder())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.rows(Samples(), torch.arange(N), Encoder())
    assert len(list(tmp_path.rglob("*.rows"))) == 1


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write features to .*file.*choose another folder"):
        FeatureStore(tmp_path / "file", progress=False).rows(Samples(), torch.arange(N), Encoder())


def test_left_over_temporary_files_go(tmp_path, monkeypatch):
    FeatureStore(tmp_path).rows(Samples(), torch.arange(3), Encoder())
    [folder] = tmp_path.iterdir()
    (folder / "tmp-killed-1").write_bytes(b"half")
    FeatureStore(tmp_path).rows(Samples(), torch.arange(3), Encoder())
    assert (folder / "tmp-killed-1").exists()  # young: may belong to a live writer
    monkeypatch.setattr(features, "STALE_S", -1.0)
    FeatureStore(tmp_path).rows(Samples(), torch.arange(3), Encoder())
    assert not (folder / "tmp-killed-1").exists()


def test_what_cannot_be_kept_is_refused(tmp_path):
    random = Encoder()
    random.deterministic = False
    with pytest.raises(UserError, match="random transform"):
        FeatureStore(tmp_path).rows(Samples(), torch.arange(3), random)

    class Overflowing(Encoder):
        def __call__(self, images):
            return super().__call__(images) / 0

    with pytest.raises(UserError, match="not finite"):
        FeatureStore(tmp_path).rows(Samples(), torch.arange(3), Overflowing())
    with pytest.raises(IndexError):
        FeatureStore(tmp_path).rows(Samples(), torch.tensor([N]), Encoder())
    with pytest.raises(UserError, match="disk, verify, ram or off"):
        FeatureStore(tmp_path, "cloud")
    with pytest.raises(UserError, match="folder"):
        FeatureStore(None, "disk")


def test_an_encoder_may_ask_for_half_precision(store):
    class Half(Encoder):
        precision = "<f2"

    rows = torch.tensor([9, 3, 49])
    found = store.rows(Samples(), rows, Half())
    assert found.dtype == torch.float16 and torch.equal(found.float(), expected(rows))
    assert store.rows(Samples(), rows, Encoder()).dtype == torch.float32  # a table of its own
    if store.mode == "disk":
        sizes = sorted(sum(f.stat().st_size for f in folder.iterdir()) for folder in store.root.iterdir())
        assert sizes == [3 * (8 + 2 * D), 3 * (8 + 4 * D)]
        again = FeatureStore(store.root, "disk", progress=False)
        assert torch.equal(again.rows(Samples(), rows, Half()), found) and again.forwards == 0


def test_numbers_too_large_for_half_precision_are_refused(store):
    class Large(Encoder):
        precision = "<f2"

        def __call__(self, images):
            return super().__call__(images) * 1e5

    with pytest.raises(UserError, match="not finite"):
        store.rows(Samples(), torch.tensor([9]), Large())


def crafted(store, rows, features=None):
    """A segment as a file: records of these rows, under the checksum of its bytes."""
    import hashlib

    table = next(iter(store.tables.values()))
    records = np.zeros(len(rows), dtype=table.record)
    records["row"], records["x"] = rows, 1 if features is None else features
    data = records.tobytes()
    path = table.folder / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.rows"
    path.write_bytes(data)
    return path


SEGMENTS = {
    "far outside": [0, 10**9],
    "one too many": [N],
    "negative": [-3],
    "most negative": [-(2**63)],
    "largest": [2**63 - 1],
    "twice": [4, 4],
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_rows_of_a_segment_are_checked(name, tmp_path):
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(3), Encoder())
    path = crafted(store, SEGMENTS[name])
    with pytest.warns(UserWarning, match="damaged"):
        again = FeatureStore(tmp_path)
        assert torch.equal(again.rows(Samples(), torch.arange(N), Encoder()), expected(torch.arange(N)))
    assert not path.exists() and again.forwards == N - 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            FeatureStore(tmp_path).rows(Samples(), torch.arange(N), Encoder()), expected(torch.arange(N))
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kept_features_are_finite(value, tmp_path):
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(3), Encoder())
    crafted(store, [7], value)
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(
            FeatureStore(tmp_path).rows(Samples(), torch.arange(N), Encoder()), expected(torch.arange(N))
        )


def test_a_folder_in_place_of_a_segment_does_no_harm(tmp_path):
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(3), Encoder())
    (next(iter(store.tables.values())).folder / f"{'a' * 32}.rows").mkdir()
    with pytest.warns(UserWarning, match="cannot be read|damaged"):
        assert torch.equal(
            FeatureStore(tmp_path).rows(Samples(), torch.arange(9), Encoder()), expected(torch.arange(9))
        )


def test_random_bytes_as_segments(tmp_path):
    """400 segments of random bytes under their right checksum: right features or computed again, never an error."""
    store, random = FeatureStore(tmp_path), np.random.default_rng(3)
    store.rows(Samples(), torch.arange(3), Encoder())
    table = next(iter(store.tables.values()))
    for k in range(400):
        records = np.frombuffer(
            random.bytes(table.record.itemsize * int(random.integers(1, 4))), dtype=table.record
        ).copy()
        if k % 4 == 0:
            records["row"] = random.integers(-2, N + 2, len(records))
        crafted(store, records["row"], records["x"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FeatureStore(tmp_path).rows(Samples(), torch.arange(N), Encoder())
        assert found.isfinite().all()
        verified = FeatureStore(tmp_path, "verify").rows(Samples(), torch.arange(N), Encoder())
    assert torch.equal(verified, expected(torch.arange(N)))


def test_verify_finds_features_of_other_images(tmp_path):
    """A segment with a right checksum and wrong features: trusted without verify, found with it."""
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(3), Encoder())
    crafted(store, [7, 8])
    rows = torch.arange(10)
    assert not torch.equal(FeatureStore(tmp_path).rows(Samples(), rows, Encoder()), expected(rows))
    store = FeatureStore(tmp_path, "verify")
    with pytest.warns(UserWarning, match="features of 2 images in .* do not match the images"):
        assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows))
    once = store.forwards
    assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows)) and store.forwards == once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("disk", "verify"):
            store = FeatureStore(tmp_path, mode)
            assert torch.equal(store.rows(Samples(), rows, Encoder()), expected(rows))
            assert store.forwards == {"disk": 0, "verify": 10}[mode]


def test_verify_allows_for_rounding(tmp_path):
    class Rounding(Encoder):
        def __call__(self, images):
            return super().__call__(images) * 1.0001

    FeatureStore(tmp_path).rows(Samples(), torch.arange(5), Encoder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureStore(tmp_path, "verify").rows(Samples(), torch.arange(5), Rounding())


def test_features_of_an_earlier_run_are_counted_once(tmp_path):
    first = FeatureStore(tmp_path)
    first.rows(Samples(), torch.arange(20), Encoder())
    assert first.reused == 0
    again = FeatureStore(tmp_path)
    for rows in (torch.tensor([3, 3, 4]), torch.arange(4, 30), torch.arange(N)):
        again.rows(Samples(), rows, Encoder())
    assert again.reused == 20 and again.forwards == 30


def test_changed_samples_have_another_fingerprint(tmp_path):
    """One pixel of an array, one byte of a file."""
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    first, again = (ArraySamples(images.clone(), [0, 0, 0]).fingerprint for _ in range(2))
    images[2, 0, 1, 1] = 1
    assert first == again != ArraySamples(images, [0, 0, 0]).fingerprint
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    first, again = (FileSamples([path], [0]).fingerprint for _ in range(2))
    path.write_bytes(b"longer")
    assert first == again != FileSamples([path], [0]).fingerprint


# counts of a run that continues


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_a_run_that_goes_on_counts_what_the_uninterrupted_one_would(mode, tmp_path):
    """Ten rows were there before the run; it is killed after it asked for 20 more, saved at half of them."""

    def process(state: dict, upto: int) -> FeatureStore:
        store = FeatureStore(tmp_path, mode)
        store.keep_ledger(tmp_path / "ledger")
        store.load_asked(state)
        store.rows(Samples(), torch.arange(upto), Encoder())
        return store

    if mode == "disk":
        FeatureStore(tmp_path).rows(Samples(), torch.arange(10), Encoder())
    free = 10 if mode == "disk" else 0
    saved = process({}, 20)
    assert saved.forwards == 20 - free
    assert process({}, 30).forwards == 30 - free  # killed: nothing of it was saved
    again = process(saved.asked(), 5)
    assert again.forwards == 0, "these were counted before the saved moment"
    again.rows(Samples(), torch.arange(40), Encoder())
    assert again.forwards == 20, "half of them lie on disk" if mode == "disk" else "all of them are encoded"


def test_rows_that_another_process_left_meanwhile_are_not_counted(tmp_path):
    store = FeatureStore(tmp_path)
    store.rows(Samples(), torch.arange(5), Encoder())
    FeatureStore(tmp_path).rows(Samples(), torch.arange(20), Encoder())
    store.rows(Samples(), torch.arange(20, 25), Encoder())
    store.rows(Samples(), torch.arange(25), Encoder())
    assert store.forwards == 5 + 5


def test_rows_asked_for_are_told_of_tables_that_are_not_open(tmp_path):
    first, again = FeatureStore(tmp_path), FeatureStore(tmp_path)
    first.rows(Samples(), torch.arange(N - 1), Encoder())
    again.load_asked(first.asked())
    assert again.asked() == first.asked()
    assert list(features.unpacked(*first.asked().values(), N)) == [True] * (N - 1) + [False]


@pytest.fixture
def hashed(monkeypatch):
    """Names of the segments whose bytes were hashed when they were opened."""
    seen, real = [], features.checksum

    def checksum(records):
        seen.append(real(records))
        return seen[-1]

    monkeypatch.setattr(features, "checksum", checksum)
    return seen


def aged(folder, monkeypatch):
    """As if the files had been written long before: nothing is recent."""
    monkeypatch.setattr(content, "RECENT_NS", -(10**12))


def test_a_segment_is_hashed_once_while_its_file_stays(tmp_path, hashed, monkeypatch):
    rows = torch.arange(N)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    aged(tmp_path, monkeypatch)
    for opened, wanted in ((1, 1), (2, 0), (3, 0)):
        hashed.clear()
        assert torch.equal(FeatureStore(tmp_path).rows(Samples(), rows, Encoder()), expected(rows))
        assert len(hashed) == wanted, f"opened {opened} times"
    hashed.clear()
    FeatureStore(tmp_path, "verify").rows(Samples(), rows, Encoder())
    assert len(hashed) == 2, "--features verify trusts no earlier reading; the second is what it computed itself"


def test_a_recent_segment_is_hashed_again(tmp_path, hashed):
    rows = torch.arange(N)
    for _ in range(3):
        hashed.clear()
        FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    assert len(hashed) == 1


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_segment_that_changed_is_hashed_again(tmp_path, hashed, monkeypatch, keep_times):
    rows = torch.arange(N)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    aged(tmp_path, monkeypatch)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    (path,) = tmp_path.rglob("*.rows")
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[-3] ^= 64
    path.write_bytes(data)
    if keep_times:  # the time of the change itself cannot be set
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(FeatureStore(tmp_path).rows(Samples(), rows, Encoder()), expected(rows))


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"x": 1}', "[" * 10**5, '{"%s": [1, 2, 3, 4, "x"]}', '{"%s": [0, 0, 0, 0, 9e99]}']
)
def test_a_damaged_list_of_readings_is_as_none(text, tmp_path, hashed, monkeypatch):
    rows = torch.arange(N)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    aged(tmp_path, monkeypatch)
    FeatureStore(tmp_path).rows(Samples(), rows, Encoder())
    (path,), (index,) = tmp_path.rglob("*.rows"), tmp_path.rglob(features.READ)
    index.write_text(text.replace("%s", path.stem))
    hashed.clear()
    assert torch.equal(FeatureStore(tmp_path).rows(Samples(), rows, Encoder()), expected(rows)) and len(hashed) == 1
