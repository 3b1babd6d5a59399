"""CUB-200-2011, 200 birds, in ten tasks of twenty"""

from pathlib import Path

from torchvision import transforms as T

from datasets.utils.array_files import ARRAY_ERRORS, ImageArrays, as_images, as_labels, read_npz
from datasets.utils.file_streams import BICUBIC, IMAGENET, Content, FileStream
from datasets.utils.sources import Archive, Source

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"


class SequentialCUB200(FileStream):
    """<base_path>/CUB_200_2011 as published; else <base_path>/CUB200/{train,test}_data.npz (data, targets, classes)."""

    NAME = "seq-cub200"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 20
    MEAN, STD = IMAGENET
    RESIZE = T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224)])
    TRANSFORM = T.Compose(
        [
            T.Resize((300, 300), BICUBIC),
            T.RandomCrop(224),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(*IMAGENET),
        ]
    )
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = ["a photo of a {}.", "a photo of a {}, a type of bird."]
    DEFAULTS = {"batch_size": 128, "n_epochs": 50, "backbone": "timm:vit_base_patch16_224"}
    FILES = (
        Source(
            ("CUB_200_2011/images|CUB200",),
            URL,
            "11,788 images",
            (Archive(URL, "97eceeb196236b17998738112f37df78"),),
        ),
    )
    N_IMAGES = 11_788

    def read(self, base: Path) -> Content:
        root, arrays = base / "CUB_200_2011", base / "CUB200"
        if not root.is_dir() and arrays.is_dir():
            return self._read_arrays(arrays)
        images, label, in_train, classes = (
            self._table(root / f"{name}.txt")
            for name in ("images", "image_class_labels", "train_test_split", "classes")
        )
        for name, table in (("image_class_labels", label), ("train_test_split", in_train)):
            if table.keys() != images.keys():
                raise self.broken(root / f"{name}.txt", f"{len(table)} rows that do not match those of images.txt")
        try:
            rows = {True: [], False: []}
            for key, name in images.items():
                rows[{"1": True, "0": False}[in_train[key]]].append((name, int(label[key]) - 1))
            order = sorted(classes, key=int)
        except (KeyError, ValueError) as error:
            raise self.broken(root, f"unknown value {error} in one of the lists") from None
        parts = [self.files(root / "images", rows[part], root / "images.txt") for part in (True, False)]
        return Content(*parts, [readable(classes[key]) for key in order])

    def _table(self, path: Path) -> dict[str, str]:
        """Rows "id value" of a list."""
        rows = [line.split(maxsplit=1) for line in self.lines(path)]
        short = [row for row in rows if len(row) != 2]
        if short:
            raise self.broken(path, f"row '{short[0][0]}' has no value")
        return dict(rows)

    def _read_arrays(self, root: Path) -> Content:
        parts, names = [], []
        for path in (root / "train_data.npz", root / "test_data.npz"):
            if not path.is_file():
                raise self.absent(path)
            try:
                data, targets, classes = read_npz(path, ("data", "targets", "classes"))
                parts.append(ImageArrays(as_images(data), as_labels(targets)))
                names = names or [readable(str(name)) for name in classes.tolist()]
            except ARRAY_ERRORS as error:
                raise self.broken(path, error or type(error).__name__) from None
        return Content(*parts, names)


def readable(name: str) -> str:
    """ "001.Black_footed_Albatross" -> "black footed albatross" """
    return name.split(".", 1)[-1].replace("_", " ").lower()
