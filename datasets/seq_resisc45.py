"""RESISC45, kinds of land and buildings seen from above, in nine tasks of five

Split, first match wins: Mammoth's resisc45_{train,test}.yaml; the lists resisc45-{train,test}.txt of Torchgeo (file
names; their validation part is not used); a fifth held out by name. Scores on different splits are not comparable.
"""

from pathlib import Path

from datasets.utils.file_streams import Content, read_split_list
from datasets.utils.image_streams import ImageNetStream, rows_by_folder
from datasets.utils.mtil_readers import read_rows
from datasets.utils.sources import TORCHGEO, Archive, Source


class SequentialResisc45(ImageNetStream):
    NAME = "seq-resisc45"
    SETTING = "class-il"
    N_TASKS = 9
    N_CLASSES_PER_TASK = 5
    TEMPLATES = ["a satellite photo of {}.", "an aerial photo of {}.", "a photo of a {}."]
    FILES = (
        Source(
            ("NWPU-RESISC45/airplane",),
            "huggingface.co torchgeo/resisc45",
            "31,500 images, 427 MB",
            (
                Archive(
                    f"{TORCHGEO}/resisc45/resolve/main/NWPU-RESISC45.zip",
                    "beeecd0b63656290ae6d65cf7763185b0c1c4c54a753ef8088d6fba3faaf1f53",
                ),
                *(
                    Archive(f"{TORCHGEO}/resisc45/resolve/main/resisc45-{part}.txt", None, "NWPU-RESISC45")
                    for part in ("train", "test")
                ),
            ),
        ),
    )

    def read(self, base: Path) -> Content:
        root = base / "NWPU-RESISC45"
        if not root.is_dir():
            raise self.absent(root)
        for pattern in ("resisc45_{}.yaml", "resisc45-{}.txt"):
            lists = [root / pattern.format(part) for part in ("train", "test")]
            if any(path.is_file() for path in lists):
                return self.listed(root, lists)
        return read_rows(lambda r: rows_by_folder(r, r), root, root, self.N_CLASSES, self.absent, self.broken)

    def listed(self, root: Path, lists: list[Path]) -> Content:
        names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        if len(names) != self.N_CLASSES:
            raise self.broken(root, f"{len(names)} class folders, {self.N_CLASSES} are published")
        parts = []
        for path in lists:
            inner = [f"{Path(name).stem.rsplit('_', 1)[0]}/{Path(name).name}" for name, _ in self.rows(path)]
            known = {name: label for label, name in enumerate(names)}
            rows = [(name, known.get(name.split("/")[0], -1)) for name in inner]
            parts.append(self.files(root, rows, path))
        return Content(*parts, [name.replace("_", " ") for name in names])

    def rows(self, path: Path) -> list[tuple[str, int | None]]:
        try:
            return read_split_list(self.lines(path))
        except ValueError as error:
            raise self.broken(path, error) from None
