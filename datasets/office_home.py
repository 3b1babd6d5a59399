"""Office-Home, 65 everyday objects in four styles, a style per task: art, clipart, product, real world

<base_path>/office-home/<Domain>/<Class>/*.jpg (or OfficeHomeDataset_10072016). Choices: no split and no order is
published for this use: a fifth of the images is held out by name, the domains are in alphabetical order.
"""

from pathlib import Path

from datasets.utils.domain_stream import DomainStream, Part
from datasets.utils.file_streams import held_out
from datasets.utils.image_streams import folder_rows
from datasets.utils.sources import Source

FOLDERS = ("office-home", "OfficeHomeDataset_10072016")


class OfficeHome(DomainStream):
    NAME = "office-home"
    SETTING = "domain-il"
    DOMAINS = ("Art", "Clipart", "Product", "Real World")
    N_TASKS = 4
    N_CLASSES_PER_TASK = 65
    FILES = (
        Source(
            tuple("|".join(f"{folder}/{domain}" for folder in FOLDERS) for domain in DOMAINS),
            "hemanthdv.org/officeHomeDataset.html",
            "about 15,500 images",
            by_hand="unpack the data set of hemanthdv.org/officeHomeDataset.html into {base}/office-home",
        ),
    )

    def rows(self, base: Path, name: str) -> tuple[Path, list[tuple[str, str]]]:
        places = [base / folder / name for folder in FOLDERS]
        root = next((place for place in places if place.is_dir()), places[0])
        if not root.is_dir():
            raise self.absent(root)
        return root, folder_rows(root)

    def domain(self, base: Path, name: str) -> tuple[Part, Part]:
        root, rows = self.rows(base, name)
        label = {folder: k for k, folder in enumerate(sorted({folder for folder, _ in rows}))}
        if len(label) != self.n_names:
            raise self.broken(root, f"{len(label)} class folders, {self.n_names} are published")
        parts = [[(root / p, label[c]) for c, p in rows if held_out(f"{name}/{p}") == test] for test in (False, True)]
        return parts[0], parts[1]

    def names(self, base: Path) -> list[str]:
        return [name.replace("_", " ") for name in sorted({folder for folder, _ in self.rows(base, "Art")[1]})]
