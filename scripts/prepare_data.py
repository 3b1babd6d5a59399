"""Download the files of a dataset: `python scripts/prepare_data.py seq-cifar10 --base_path ./data/`."""

import argparse
import gzip
import hashlib
import lzma
import shutil
import stat
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

MOST_UNPACKED, RATIO = 2**30, 100  # an archive may unpack to 1 GiB and a hundred times its own size
# dataset -> torchvision class, whose root is <base_path>/<class name in capitals>
SOURCES = {
    "seq-mnist": "MNIST",
    "perm-mnist": "MNIST",
    "rot-mnist": "MNIST",
    "mnist-360": "MNIST",
    "seq-cifar10": "CIFAR10",
    "seq-cifar100": "CIFAR100",
}
CALTECH = "https://data.caltech.edu/records/65de6-vp158/files"
TORCHGEO = "https://huggingface.co/datasets/torchgeo"
HUB = "https://huggingface.co/datasets/aimagelab-ta"
CLVQA = "https://github.com/showlab/CLVQA/releases/download/v1.0"
COCO, VQA = "http://images.cocodataset.org/zips", "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
ISIC = "https://isic-challenge-data.s3.amazonaws.com/2018/ISIC2018_Task3_Training"
# dataset -> (url, md5 where one is published, folder under base_path that it is put or unpacked into)
ARCHIVES = {
    "seq-imagenet-r": [
        ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337", "."),
    ],
    "seq-cub200": [
        (f"{CALTECH}/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", "."),
    ],
    "seq-cars196": [
        *(
            (f"{HUB}/cars196/resolve/main/{part}_{kind}.pt", None, "cars196")
            for part in ("train", "test")
            for kind in ("images", "labels")
        ),
        (f"{HUB}/cars196/resolve/main/class_names.json", None, "cars196"),
    ],
    "seq-eurosat-rgb": [
        (f"{TORCHGEO}/eurosat/resolve/main/EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", "eurosat"),
        (f"{HUB}/eurosat-rgb/resolve/main/split.json", None, "eurosat"),
    ],
    "clove-scene": [(f"{CLVQA}/CLOVE-json.zip", None, "clove")],
    "clove-function": [(f"{CLVQA}/CLOVE-json.zip", None, "clove")],
    "vqacl": [
        *(
            (f"{VQA}/v2_{kind}_{part}_mscoco.zip", None, "vqacl")
            for kind in ("Questions", "Annotations")
            for part in ("Train", "Val")
        ),
        *((f"{COCO}/{part}2014.zip", None, "vqacl") for part in ("train", "val")),
    ],
    "mm-imdb": [("https://archive.org/download/mmimdb/mmimdb.tar.gz", None, ".")],
    "seq-isic": [
        (f"{ISIC}_Input.zip", None, "isic"),
        (f"{ISIC}_GroundTruth.zip", None, "isic"),
        (f"{ISIC}_LesionGroupings.csv", None, "isic"),
    ],
}

ARCHIVES["mm-imagenet-r"] = ARCHIVES["seq-imagenet-r"]
# dataset -> what is left to do by hand after its archives, if it has any
THEN_BY_HAND = {
    "clove-scene": "put the folder json of CLOVE-json.zip, and Visual Genome's VG_100K and VG_100K_2 "
    "(visualgenome.org) below vg/, under {base}/clove",
    "clove-function": "as for clove-scene; TextVQA's train_images (textvqa.org) go below {base}/clove/textvqa",
    "vqacl": "put Partition_Q of github.com/zhangxi1997/VQACL, or its QuesId_task_map.json, under {base}/vqacl",
    "mm-imagenet-r": "make captions: python scripts/caption_images.py {base}/imagenet-r "
    "{base}/mm_imagenet_r/captions.jsonl",
    "upmc-food101": "fetch kaggle.com/datasets/gianmarco96/upmcfood101 (it requires an account) and put images/ "
    "and texts/ under {base}/upmc_food101",
}


# what torchvision fetches of the cross-domain streams, folder below base_path of its root
CROSS_DOMAIN = {
    "FGVCAircraft": ".",
    "Caltech101": ".",
    "CIFAR100": "CIFAR100",
    "DTD": ".",
    "EuroSAT": ".",
    "Flowers102": ".",
    "Food101": ".",
    "MNIST": "MNIST",
    "OxfordIIITPet": ".",
}
BY_HAND = {
    "stanford_cars": "Stanford Cars, from a mirror named in github.com/pytorch/vision/issues/7545",
    "SUN397": "SUN397, from a mirror named in github.com/pytorch/vision/pull/9528",
}
# the lists of Zhou et al. that xtail reads (and mtil with --split coop), below base_path
COOP_LISTS = (
    "caltech101/split_zhou_Caltech101.json",
    "dtd/dtd/split_zhou_DescribableTextures.json",
    "eurosat/split_zhou_EuroSAT.json",
    "flowers-102/split_zhou_OxfordFlowers.json",
    "food-101/split_zhou_Food101.json",
    "oxford-iiit-pet/split_zhou_OxfordPets.json",
    "stanford_cars/split_zhou_StanfordCars.json",
    "SUN397/split_zhou_SUN397.json",
)


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch(url: str, md5: str | None, folder: Path) -> Path:
    """Download one file into `folder`, under a temporary name until it is complete and its md5 is the published one.

    If none is published, the md5 of the download is kept beside it, so that a file damaged later is fetched again.
    """
    path = folder / url.split("/")[-1]
    noted = path.with_name(path.name + ".md5")
    wanted = md5 or (noted.read_text().strip() if noted.is_file() else None)
    if path.is_file() and wanted in (None, md5_of(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    download(url, part)
    found = md5_of(part)
    if md5 not in (None, found):
        part.unlink()
        raise OSError(f"{url} has md5 {found}, but {md5} is published; run the command again")
    if md5 is None:
        print(f"warning: no checksum is published for {url}; this file has md5 {found}", file=sys.stderr)
        noted.write_text(f"{found}\n")
    return part.replace(path)


def download(url: str, part: Path) -> None:
    """Download the whole file; a partial download is continued if the server supports it."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the partial file is not the beginning of this one
            part.unlink()
            return download(url, part)
        raise
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not goes_on:
            have = 0
        with part.open("ab" if goes_on else "wb") as file:
            shutil.copyfileobj(answer, file)
        length = answer.headers.get("Content-Length")
    if length and part.stat().st_size != have + int(length):
        raise OSError(
            f"{url} stopped at {part.stat().st_size} of {have + int(length)} bytes; "
            "run the command again to continue from there"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar or .tgz, up to a size limit for its length that fits the disk. A member that is a link or
    points outside `folder` is an error; an archive that cannot be read is removed, so that it is fetched again."""
    free = shutil.disk_usage(archive.parent).free
    room = {"bytes": min(MOST_UNPACKED + RATIO * archive.stat().st_size, free)}

    def check(name: str, size: int, special: bool) -> None:
        if name.startswith(("/", "\\")) or ".." in Path(name.replace("\\", "/")).parts or name[1:2] == ":":
            raise OSError(f"{archive} contains {name!r}, which is outside {folder}; unpacking stopped")
        if special:
            raise OSError(f"{archive} contains {name!r}, which is not a regular file; unpacking stopped")
        room["bytes"] -= size
        if room["bytes"] < 0:
            raise OSError(
                f"{archive} unpacks to more than its {archive.stat().st_size} bytes or the {free} free bytes "
                "on the disk allow"
            )

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                for member in members:
                    check(member.filename, member.file_size, stat.S_ISLNK(member.external_attr >> 16))
                file.extractall(folder, members)
            return
        with tarfile.open(archive) as file:
            for member in file:  # one at a time: the member list of an archive bomb is as long as its content
                check(member.name, member.size, not (member.isfile() or member.isdir()))
                file.extract(member, folder, filter="data")
        if archive.suffix == ".tar" and not ends_in_zeros(archive):
            raise tarfile.ReadError("its end is missing")
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        gzip.BadGzipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        LookupError,
        struct.error,
    ) as error:  # zipfile and tarfile let errors through in names and heads that are damaged
        archive.unlink()
        archive.with_name(archive.name + ".md5").unlink(missing_ok=True)
        raise OSError(
            f"{archive} is damaged ({' '.join(str(error).split())[:160]}) and was removed; "
            "run the command again to fetch it"
        ) from None


def ends_in_zeros(archive: Path) -> bool:
    """Whether a plain tar ends with its two empty blocks; one that is cut between two members reads without error."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 1024))
        return not any(file.read())


def prepare_archives(dataset: str, base_path: Path) -> Path:
    """Fetch, check and unpack the files of ARCHIVES; archives are kept, so that a second call fetches nothing."""
    for url, md5, folder in ARCHIVES[dataset]:
        path = fetch(url, md5, base_path / folder)
        if path.suffix in {".zip", ".tar", ".tgz", ".gz"}:
            unpack(path, base_path / folder)
    return base_path


def prepare_cross_domain(base_path: Path, dataset: str = "mtil") -> Path:
    """Fetch the data sets that have a host; the error names the two that do not and, for xtail, the lists."""
    from torchvision import datasets

    for name, folder in CROSS_DOMAIN.items():
        if dataset == "xtail" and name == "CIFAR100":
            continue  # not a domain of X-TAIL
        root = base_path / folder
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, name)(str(root), download=True)
    missing = [
        f"{what} as {base_path / folder}" for folder, what in BY_HAND.items() if not (base_path / folder).is_dir()
    ]
    lists = [str(base_path / name) for name in COOP_LISTS if dataset == "xtail" and not (base_path / name).is_file()]
    if lists:
        missing.append(f"the lists linked in DATASETS.md of github.com/KaiyangZhou/CoOp as {', '.join(lists)}")
    if missing:
        raise OSError(f"these must be fetched by hand: {'; '.join(missing)}")
    return base_path


def prepare(dataset: str, base_path: Path) -> Path:
    """Fetch, check and unpack; does nothing if the files are there and complete."""
    if dataset in {"mtil", "xtail"}:
        return prepare_cross_domain(base_path, dataset)
    if dataset in ARCHIVES or dataset in THEN_BY_HAND:
        if dataset in ARCHIVES:
            prepare_archives(dataset, base_path)
        if dataset in THEN_BY_HAND:
            print(f"by hand: {THEN_BY_HAND[dataset].format(base=base_path)}")
        return base_path
    from torchvision import datasets

    name = SOURCES[dataset]
    root = base_path / name
    root.mkdir(parents=True, exist_ok=True)
    for train in (True, False):
        getattr(datasets, name)(str(root), train=train, download=True)
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = list(dict.fromkeys([*SOURCES, *ARCHIVES, *THEN_BY_HAND, "mtil", "xtail"]))
    parser.add_argument("dataset", type=lambda name: name.replace("_", "-"), choices=known)
    parser.add_argument("--base_path", type=Path, default=Path("./data/"))
    args = parser.parse_args()
    try:
        root = prepare(args.dataset, args.base_path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # no network, a full disk, or a checksum that differs
        print(f"error: {args.dataset} could not be fetched: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.dataset not in THEN_BY_HAND:
        print(f"{args.dataset}: ready under {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
