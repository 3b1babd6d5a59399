"""Download the files of a dataset: `python scripts/prepare_data.py seq-cifar10 --base_path ./data/`."""

import argparse
import hashlib
import shutil
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

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
    "clove-scene": "put the folder json of CLOVE-json.zip, and Visual Genome's VG_100K and VG_100K_2 (visualgenome.org) "
    "below vg/, under {base}/clove",
    "clove-function": "as for clove-scene; TextVQA's train_images (textvqa.org) go below {base}/clove/textvqa",
    "vqacl": "put Partition_Q of github.com/zhangxi1997/VQACL, or its QuesId_task_map.json, under {base}/vqacl",
    "mm-imagenet-r": "make captions: python scripts/caption_images.py {base}/imagenet-r {base}/mm_imagenet_r/captions.jsonl",
    "upmc-food101": "fetch kaggle.com/datasets/gianmarco96/upmcfood101 (it wants an account) and put images/ and texts/ "
    "under {base}/upmc_food101",
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
# the lists of Zhou et al. that xtail reads (mtil with --split coop, too), below base_path
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
    """One file into `folder`, under another name until it is whole and its md5 is the published one."""
    path = folder / url.split("/")[-1]
    if path.is_file() and md5 in (None, md5_of(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
        shutil.copyfileobj(answer, file)
        wanted = answer.headers.get("Content-Length")
    if wanted and part.stat().st_size != int(wanted):
        raise OSError(f"{url} broke off at {part.stat().st_size} of {wanted} bytes; start again")
    found = md5_of(part)
    if md5 not in (None, found):
        part.unlink()
        raise OSError(f"{url} has md5 {found}, {md5} is published; start again")
    if md5 is None:
        print(f"warning: no checksum is published for {url}; this file has md5 {found}", file=sys.stderr)
    return part.replace(path)


def unpack(archive: Path, folder: Path) -> None:
    """All of a .zip, .tar or .tgz; a member that would leave `folder` is an error."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:  # its names are made to stay inside by zipfile itself
            file.extractall(folder)
        return
    try:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise OSError(f"{archive}: {error}") from None


def prepare_archives(dataset: str, base_path: Path) -> Path:
    """Fetch, check and unpack the files of ARCHIVES; archives are kept, so that a second call fetches nothing."""
    for url, md5, folder in ARCHIVES[dataset]:
        path = fetch(url, md5, base_path / folder)
        if path.suffix in {".zip", ".tar", ".tgz", ".gz"}:
            unpack(path, base_path / folder)
    return base_path


def prepare_cross_domain(base_path: Path, dataset: str = "mtil") -> Path:
    """The data sets that can be fetched; the two whose hosts are gone and, for xtail, the lists are asked for by name."""
    from torchvision import datasets

    for name, folder in CROSS_DOMAIN.items():
        if dataset == "xtail" and name == "CIFAR100":
            continue  # no domain of X-TAIL
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
        raise OSError(f"these cannot be fetched from here and go there by hand: {'; '.join(missing)}")
    return base_path


def prepare(dataset: str, base_path: Path) -> Path:
    """Fetch, check and unpack; does nothing where the files are there and whole."""
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
