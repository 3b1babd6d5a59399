"""What streams of images with one text each share: phases, texts by file name, rows from json lines."""

import json
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from torchvision import transforms as T

from datasets.utils import file_streams
from datasets.utils.file_streams import FileStream
from datasets.utils.samples import FileSamples, PairFiles
from datasets.utils.tokens import tokenize
from utils import json_text
from utils.errors import UserError

TEXT_TOKENS = 77  # at most, as CLIP reads; longer texts lose their tail


@dataclass
class Captioned:
    """Images of one part with their texts and raw labels."""

    paths: list[Path]
    texts: list[str]
    labels: list[int]


class CaptionedFiles(FileStream):
    """A subclass writes `parts(base)`: training and test as Captioned, and the names of the classes."""

    SETTING = "class-il"
    HAS_TEXT = True
    CLIP_BACKBONE = "ViT-B/16"
    MEAN, STD = file_streams.CLIP
    TRANSFORM = T.Compose([*file_streams.CROP_AND_FLIP, T.ToTensor(), T.Normalize(MEAN, STD)])
    TEST_TRANSFORM = T.Compose([*FileStream.RESIZE.transforms, T.ToTensor(), T.Normalize(MEAN, STD)])
    DEFAULTS = {"batch_size": 64, "n_epochs": 20, "backbone": "clip-fused"}
    MOST_CLASSES: int  # for the tasks' sizes, before a file is read

    def __init__(self, args: Namespace, phases: int, n_classes: int | None = None):
        n = n_classes or self.MOST_CLASSES
        self.N_TASKS = min(phases, n)
        if self.N_TASKS < phases:
            raise UserError(f"--phases {phases}: {self.NAME} has {n} classes; give fewer phases")
        each, rest = divmod(n, phases)
        self.N_CLASSES_PER_TASK = [each + 1] * rest + [each] * (phases - rest) if rest else each
        super().__init__(args)

    def parts(self, base: Path) -> tuple[Captioned, Captioned, list[str]]:
        raise NotImplementedError(f"{type(self).__name__} defines no parts()")

    def read(self, base: Path) -> file_streams.Content:
        train, test, names = self.parts(base)
        return file_streams.Content(self.pairs(train), self.pairs(test), names)

    def pairs(self, part: Captioned) -> PairFiles:
        samples = PairFiles(part.paths, tokenize(part.texts, self.args, cut=TEXT_TOKENS), part.labels)
        samples.captions = part.texts
        return samples

    def with_texts(self, samples: FileSamples, root: Path, texts: dict[str, str], source: Path) -> Captioned:
        """Images that have a text; up to one percent may lack one and are left out with a warning, more are refused."""
        names = [path.relative_to(root).as_posix() for path in samples.paths]
        kept = [row for row, name in enumerate(names) if texts.get(name, "").strip()]
        lost = len(names) - len(kept)
        if lost > len(names) / 100:
            first = next(name for name in names if not texts.get(name, "").strip())
            raise UserError(
                f"{source} has a caption for {len(kept)} of {len(names)} images, 99 % are required; {first} does not "
                "have one: run scripts/caption_images.py on"
            )
        if lost:
            warnings.warn(f"{self.NAME}: {lost} images have no caption and are left out", stacklevel=2)
        labels = samples.targets.tolist()
        return Captioned([samples.paths[k] for k in kept], [texts[names[k]] for k in kept], [labels[k] for k in kept])

    def table(self, path: Path):
        """A json file."""
        if not path.is_file():
            raise self.absent(path)
        try:
            return json_text.parse(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise self.broken(path, f"line {error.lineno}: {error.msg}") from None
        except (UnicodeDecodeError, OSError) as error:
            raise self.broken(path, error) from None


def read_captions(path: Path) -> dict[str, str]:
    """File name -> caption, from one {"file", "caption", ..} a line, or one object {file: caption}. Of two lines about
    one file the last counts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text ({error}); save it as UTF-8, or create it again"
        ) from None
    try:
        whole = json_text.parse(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and "file" not in whole:
        wrong = [name for name, caption in whole.items() if not isinstance(caption, str)]
        if wrong:
            raise UserError(f"{path}: the caption of {wrong[0]} is not a string; fix that entry")
        return whole
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json_text.parse(line)
            name, caption = row["file"], row["caption"]
            if not (isinstance(name, str) and isinstance(caption, str)):
                raise TypeError("file and caption are not strings")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{path} line {number} is not {{"file": .., "caption": ..}} ({error}); fix or remove it'
            ) from None
        found[name] = caption
    return found
