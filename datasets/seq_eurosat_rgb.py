"""EuroSAT, ten kinds of land seen by satellite, in five tasks of two"""

from pathlib import Path

from torchvision import transforms as T

from datasets.utils.file_streams import BICUBIC, CLIP, CROP_AND_FLIP, Content, FileStream
from datasets.utils.sources import HUB, SOURCES, Archive, Source
from utils import json_text
from utils.errors import UserError


class SequentialEuroSAT(FileStream):
    """<base_path>/eurosat/split.json, of rows [path, label, name], and the images below eurosat/2750/ or eurosat/.

    The names are those of the labels, in whatever order the rows come; the split's own validation part is not used.
    """

    NAME = "seq-eurosat-rgb"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    MEAN, STD = CLIP
    RESIZE = T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224)])
    TRANSFORM = T.Compose([*CROP_AND_FLIP, T.ToTensor(), T.Normalize(*CLIP)])
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor(), T.Normalize(*CLIP)])
    TEMPLATES = ["a centered satellite photo of {}.", "a satellite photo of {}.", "a photo of a {}."]
    DEFAULTS = {"batch_size": 128, "n_epochs": 5, "backbone": "timm:vit_base_patch16_224"}
    FILES = (
        SOURCES["eurosat"],
        Source(
            ("eurosat/split.json|eurosat/split_zhou_EuroSAT.json",),
            "huggingface.co aimagelab-ta/eurosat-rgb",
            "one list",
            (Archive(f"{HUB}/eurosat-rgb/resolve/main/split.json", None, "eurosat"),),
        ),
    )
    N_IMAGES = 21_600

    def read(self, base: Path) -> Content:
        root = base / "eurosat"
        path = next(
            (root / n for n in ("split.json", "split_zhou_EuroSAT.json") if (root / n).is_file()), root / "split.json"
        )
        if not path.is_file():
            raise self.absent(path)
        try:
            table = json_text.parse(path.read_text(encoding="utf-8"))
            parts = [
                [(str(name), int(label), str(text)) for name, label, text in table[part]] for part in ("train", "test")
            ]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self.broken(path, error) from None
        images = root / "2750" if (root / "2750").is_dir() else root
        samples = [self.files(images, [row[:2] for row in rows], path) for rows in parts]
        return Content(*samples, self._names(path, parts[0] + parts[1]))

    def _names(self, path: Path, rows: list[tuple[str, int, str]]) -> list[str]:
        pairs = sorted({(label, text.replace("_", " ")) for _, label, text in rows})
        if [label for label, _ in pairs] != list(range(self.N_CLASSES)):
            raise UserError(
                f"{path} does not give each of the {self.N_CLASSES} labels one name: download the file again"
            )
        return [text for _, text in pairs]
