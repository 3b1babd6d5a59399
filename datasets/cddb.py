"""CDDB-Hard, real or generated images of five generators, a generator per task

gaugan, biggan, wild, whichfaceisreal, san: <base_path>/cddb/<generator>/train/**/{0_real,1_fake}/ and val/ (or test/).
Two classes: chance is 50 percent.
"""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.domain_stream import DomainStream, Part
from datasets.utils.image_streams import two_parts
from datasets.utils.sources import Source

FOLDERS = {"0_real": 0, "1_fake": 1}


class Cddb(DomainStream):
    NAME = "cddb"
    SETTING = "domain-il"
    DOMAINS = ("gaugan", "biggan", "wild", "whichfaceisreal", "san")
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    CLASS_NAMES = ["real image", "generated image"]
    TEMPLATES = ["a photo of a {}.", "this is a {}."]
    FILES = (
        Source(
            tuple(f"cddb/{domain}/train" for domain in DOMAINS),
            "github.com/Coral79/CDDB",
            "five folders",
            by_hand="unpack the data set linked in github.com/Coral79/CDDB into {base}/cddb",
        ),
    )

    def domain(self, base: Path, name: str) -> tuple[Part, Part]:
        root = base / "cddb" / name
        found = two_parts(root)
        if found is None:
            raise self.absent(root / "train" if not (root / "train").is_dir() else root / "val")
        return self.part(found[0]), self.part(found[1])

    def part(self, root: Path) -> Part:
        images = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        rows = [(path, FOLDERS[path.parent.name]) for path in images if path.parent.name in FOLDERS]
        if {label for _, label in rows} != {0, 1}:
            raise self.broken(root, "it needs images in folders 0_real and 1_fake")
        return rows

    def names(self, base: Path) -> list[str]:
        return list(type(self).CLASS_NAMES)
