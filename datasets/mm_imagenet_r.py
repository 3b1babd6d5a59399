"""MM-ImageNet-R: renditions of 200 ImageNet classes, each with a caption, in 5, 10 or 20 tasks

Lee et al., Exemplar Masking, arXiv 2412.09549, which captions ImageNet-R (arXiv 2006.16241) with InstructBLIP. The
captions were not published; scripts/caption_images.py makes them.

Files: <base_path>/imagenet-r as seq-imagenet-r expects it, and <base_path>/mm_imagenet_r/captions.jsonl with lines
{"file": "n02134084/painting_3.jpg", "caption": "...", ..} (or one object {file: caption}).

Choices:
- --phases: tasks of equal size; the paper reports 5, 10 and 20.
- Captions are cut at 77 tokens, which is what CLIP reads.
- An image without a caption is left out; the run is refused when more than one in a hundred lacks it.
"""

import re
from argparse import Namespace
from pathlib import Path
from typing import Literal

from datasets.seq_imagenet_r import SequentialImageNetR
from datasets.utils.fetch import base_path
from datasets.utils.mm_files import Captioned, CaptionedFiles, read_captions
from datasets.utils.sources import SOURCES, Source
from utils.errors import UserError


class MmImageNetR(CaptionedFiles):
    NAME = "mm-imagenet-r"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 20
    MOST_CLASSES = 200
    TEMPLATES = SequentialImageNetR.TEMPLATES
    FILES = (
        SOURCES["imagenet-r"],
        Source(
            ("mm_imagenet_r/captions.jsonl",),
            "scripts/caption_images.py",
            "30,000 captions",
            by_hand="make captions: python scripts/caption_images.py {base}/imagenet-r "
            "{base}/mm_imagenet_r/captions.jsonl",
        ),
    )

    def __init__(self, args: Namespace, phases: Literal[5, 10, 20] = 10):
        super().__init__(args, phases)

    def parts(self, base: Path) -> tuple[Captioned, Captioned, list[str]]:
        root, source = base / "imagenet-r", base / "mm_imagenet_r" / "captions.jsonl"
        if not root.is_dir():
            raise self.absent(root)
        content = SequentialImageNetR(Namespace(base_path=str(base_path(self.args)))).read(base)
        if not source.is_file():
            raise UserError(
                f"{self.NAME}: {source} does not exist; make it with `python scripts/caption_images.py {root} {source}`"
            )
        texts = {re.sub(r"^(.*/)?(?=n\d{8}/)", "", name): text for name, text in read_captions(source).items()}
        parts = []
        for samples in (content.train, content.test):
            inner = {path.relative_to(root).as_posix(): "/".join(path.parts[-2:]) for path in samples.paths}
            named = {name: texts[short] for name, short in inner.items() if short in texts}
            parts.append(self.with_texts(samples, root, named, source))
        return *parts, content.names
