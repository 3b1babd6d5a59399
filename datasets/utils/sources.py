"""Where published data come from: what a stream needs on disk, and what scripts/prepare_data.py fetches.

A stream names its sources in FILES. Addresses and checksums are those that the publishers and torchvision give.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    url: str
    checksum: str | None  # md5, or sha256 by its length; None: none is published
    folder: str = "."  # below the base path, into which the file is put or unpacked


@dataclass(frozen=True)
class Source:
    """One collection of files. `places` must exist below the base path; "a|b" is either of two layouts."""

    places: tuple[str, ...]
    host: str
    amount: str
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""  # what remains to be done after the archives; {base} is the base path

    def missing(self, base: Path) -> list[str]:
        """The places that do not exist."""
        return [place for place in self.places if not any((base / part).exists() for part in place.split("|"))]

    def root(self, base: Path) -> Path:
        """The folder that the first place is below: the base path, or one inside it that another program made."""
        first, *others = self.places[0].split("|")
        inner = [other.removesuffix(first) for other in others if other.endswith(first) and (base / other).exists()]
        return base if (base / first).exists() or not inner else base / inner[0]

    def started(self, base: Path) -> bool:
        """Whether any of its places exists."""
        return len(self.missing(base)) < len(self.places)


COOP = "DATASETS.md of github.com/KaiyangZhou/CoOp links it"
TORCHGEO = "https://huggingface.co/datasets/torchgeo"
HUB = "https://huggingface.co/datasets/aimagelab-ta"
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
DIGITS = "http://ufldl.stanford.edu/housenumbers"
VQA, COCO = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa", "http://images.cocodataset.org/zips"
_MNIST_MD5 = {
    "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
}

SOURCES = {
    "mnist": Source(
        ("MNIST/MNIST/raw|MNIST/raw",),
        "ossci-datasets.s3.amazonaws.com/mnist",
        "11 MB packed",
        tuple(Archive(f"{MNIST}/{name}-ubyte.gz", md5, "MNIST/MNIST/raw") for name, md5 in _MNIST_MD5.items()),
    ),
    "cifar10": Source(
        ("CIFAR10/cifar-10-batches-py",),
        "cs.toronto.edu/~kriz",
        "163 MB",
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "CIFAR10"
            ),
        ),
    ),
    "cifar100": Source(
        ("CIFAR100/cifar-100-python",),
        "cs.toronto.edu/~kriz",
        "161 MB",
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
                "CIFAR100",
            ),
        ),
    ),
    "aircraft": Source(
        ("fgvc-aircraft-2013b/data",),
        "robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        "10,000 images",
        (Archive(f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", "d4acdd33327262359767eeaa97a4f732"),),
    ),
    "caltech101": Source(
        ("caltech101/101_ObjectCategories",),
        "data.caltech.edu/records/mzrjq-6wc02",
        "8,677 images",
        (
            Archive(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                "caltech101",
            ),
        ),
    ),
    "dtd": Source(
        ("dtd/dtd/images|DTD/dtd/dtd/images",),
        "robots.ox.ac.uk/~vgg/data/dtd",
        "5,640 images",
        (Archive(f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd"),),
    ),
    "eurosat": Source(
        ("eurosat/2750",),
        "huggingface.co torchgeo/eurosat",
        "27,000 images",
        (Archive(f"{TORCHGEO}/eurosat/resolve/main/EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", "eurosat"),),
    ),
    "flowers": Source(
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        "robots.ox.ac.uk/~vgg/data/flowers/102",
        "8,189 images",
        (
            Archive(f"{VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
            Archive(f"{VGG}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
            Archive(f"{VGG}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
        ),
    ),
    "food": Source(
        ("food-101/images", "food-101/meta"),
        "data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "101,000 images",
        (Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
    ),
    "pets": Source(
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        "robots.ox.ac.uk/~vgg/data/pets",
        "7,349 images",
        (
            Archive(f"{VGG}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
            Archive(f"{VGG}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet"),
        ),
    ),
    "cars": Source(
        ("stanford_cars",),
        "the mirrors named in github.com/pytorch/vision/issues/7545",
        "16,185 images",
        by_hand="put Stanford Cars, from a mirror named in github.com/pytorch/vision/issues/7545, under "
        "{base}/stanford_cars",
    ),
    "sun397": Source(
        ("SUN397",),
        "the mirrors named in github.com/pytorch/vision/pull/9528",
        "108,754 images",
        by_hand="put SUN397, from a mirror named in github.com/pytorch/vision/pull/9528, under {base}/SUN397",
    ),
    "svhn": Source(
        ("svhn/train_32x32.mat|SVHN/train_32x32.mat", "svhn/test_32x32.mat|SVHN/test_32x32.mat"),
        "ufldl.stanford.edu/housenumbers",
        "99,289 images",
        (
            Archive(f"{DIGITS}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", "svhn"),
            Archive(f"{DIGITS}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", "svhn"),
        ),
    ),
    "gtsrb": Source(
        ("gtsrb/GTSRB/Training|GTSRB/gtsrb/GTSRB/Training", "gtsrb/GT-final_test.csv|GTSRB/gtsrb/GT-final_test.csv"),
        "sid.erda.dk",
        "39,270 images",
        (
            Archive(f"{SIGNS}/GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", "gtsrb"),
            Archive(f"{SIGNS}/GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", "gtsrb"),
            Archive(f"{SIGNS}/GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", "gtsrb"),
        ),
    ),
    "imagenet": Source(
        ("imagenet/train", "imagenet/val", "imagenet/classnames.txt|imagenet/LOC_synset_mapping.txt"),
        "image-net.org (it requires an account)",
        "1,300 training and 50 validation images per class",
        by_hand="put the folders of ILSVRC2012 as {base}/imagenet/train/<wnid>/ and val/<wnid>/, and lines "
        '"<wnid> <name>" as {base}/imagenet/classnames.txt (Kaggle\'s LOC_synset_mapping.txt will do)',
    ),
    "imagenet-r": Source(
        ("imagenet-r",),
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "30,000 images",
        (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337"),),
    ),
    "clove": Source(
        ("clove/json|clove/npy", "clove/vg"),
        "https://github.com/showlab/CLVQA/releases (CLOVE-json.zip), visualgenome.org and textvqa.org (images)",
        "about 140,000 questions",
        (Archive("https://github.com/showlab/CLVQA/releases/download/v1.0/CLOVE-json.zip", None, "clove"),),
        "put the folder json of CLOVE-json.zip, and Visual Genome's VG_100K and VG_100K_2 (visualgenome.org) below "
        "vg/, under {base}/clove; TextVQA's train_images (textvqa.org), for clove-function, go below "
        "{base}/clove/textvqa",
    ),
    "vqacl": Source(
        ("vqacl/Partition_Q|vqacl/QuesId_task_map.json", "vqacl/train2014", "vqacl/val2014"),
        "https://github.com/zhangxi1997/VQACL (partition), visualqa.org (annotations), cocodataset.org (images)",
        "658,111 questions, 123,287 images",
        (
            *(
                Archive(f"{VQA}/v2_{kind}_{part}_mscoco.zip", None, "vqacl")
                for kind in ("Questions", "Annotations")
                for part in ("Train", "Val")
            ),
            *(Archive(f"{COCO}/{part}2014.zip", None, "vqacl") for part in ("train", "val")),
        ),
        "put Partition_Q of github.com/zhangxi1997/VQACL, or its QuesId_task_map.json, under {base}/vqacl",
    ),
}
