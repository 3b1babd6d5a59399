"""ImageNet-100: one hundred classes of ILSVRC-2012, in ten tasks of ten

<base_path>/imagenet/train/<wnid>/ and val/<wnid>/; names from lines "<wnid> <name>" in imagenet/classnames.txt, or in
Kaggle's LOC_synset_mapping.txt. Papers use at least five lists of classes: --imagenet100_list names a file with a wnid
per line, in the order of the labels; `first100` takes the first hundred wnids, as RAPF does, n01440764 to n01855672.
"""

from argparse import Namespace
from pathlib import Path

from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ImageNetStream, names_of, need_names
from datasets.utils.samples import FileSamples
from datasets.utils.sources import SOURCES
from utils.errors import UserError


class SequentialImageNet100(ImageNetStream):
    NAME = "seq-imagenet100"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    FILES = (SOURCES["imagenet"],)

    def __init__(self, args: Namespace, imagenet100_list: str = "first100"):
        self.listed = imagenet100_list
        super().__init__(args)

    def wnids(self, train: Path) -> list[str]:
        if self.listed == "first100":
            return sorted(folder.name for folder in train.glob("n[0-9]*") if folder.is_dir())[: self.N_CLASSES]
        path = Path(self.listed).expanduser()
        if not path.is_file():
            raise UserError(f"--imagenet100_list {path} does not exist: give a file with a wnid per line, or first100")
        return [line.split()[0] for line in self.lines(path)]

    def read(self, base: Path) -> Content:
        root = base / "imagenet"
        for part in (root / "train", root / "val"):
            if not part.is_dir():
                raise self.absent(part)
        wnids = self.wnids(root / "train")
        if len(set(wnids)) != self.N_CLASSES:
            raise UserError(f"{self.NAME}: {len(set(wnids))} classes in {self.listed}, {self.N_CLASSES} are needed")
        sources = [root / name for name in ("classnames.txt", "LOC_synset_mapping.txt")]
        source = next((path for path in sources if path.is_file()), sources[0])
        names = need_names(names_of(self.lines(source)), wnids, source)
        return Content(self.part(root / "train", wnids), self.part(root / "val", wnids), names)

    def part(self, root: Path, wnids: list[str]) -> FileSamples:
        rows = [(path, k) for k, wnid in enumerate(wnids) for path in sorted((root / wnid).glob("*.JPEG"))]
        return FileSamples([path for path, _ in rows], [k for _, k in rows])
