"""CORe50, 50 objects in eleven sessions of video: eight sessions train, one per task, three are the test set of all

The NI scenario: sessions 1, 2, 4, 5, 6, 8, 9, 11 train, 3, 7, 10 are held out, and the same test set is scored after
each task. <base_path>/core50_128x128/s<session>/o<object>/*.png. Five objects share a kind: a number tells them apart.
"""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.domain_stream import DomainStream, Part
from datasets.utils.sources import Source

KINDS = "plug adapter|mobile phone|scissors|light bulb|can|glasses|ball|marker|cup|remote control".split("|")
TRAIN, TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)


class Core50(DomainStream):
    NAME = "core50"
    SETTING = "domain-il"
    DOMAINS = tuple(f"s{session}" for session in TRAIN)
    N_TASKS = 8
    N_CLASSES_PER_TASK = 50
    HELD_OUT = True
    FILES = (
        Source(
            tuple(f"core50_128x128/s{session}" for session in sorted(TRAIN + TEST)),
            "vlomonaco.github.io/core50",
            "164,866 images of 128 pixels",
            by_hand="unpack core50_128x128.zip of vlomonaco.github.io/core50 into {base}",
        ),
    )

    def domain(self, base: Path, name: str) -> tuple[Part, Part]:
        return self.session(base, name), []

    def held_out(self, base: Path) -> Part:
        return [row for session in TEST for row in self.session(base, f"s{session}")]

    def session(self, base: Path, name: str) -> Part:
        rows: Part = []
        for number in range(1, self.n_names + 1):
            folder = base / "core50_128x128" / name / f"o{number}"
            if not folder.is_dir():
                raise self.absent(folder)
            rows += [(path, number - 1) for path in sorted(folder.iterdir()) if path.suffix.lower() in IMG_EXTENSIONS]
        return rows

    def names(self, base: Path) -> list[str]:
        return [f"{kind} {number}" for kind in KINDS for number in range(1, 6)]
