"""Any folder of images, or a CSV or JSONL list: tasks by class or by a column task or domain; texts; questions"""

import os
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torchvision import transforms as T

from datasets.utils import file_streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.fetch import base_path
from datasets.utils.file_streams import BICUBIC
from datasets.utils.image_check import transparent, unreadable
from datasets.utils.mm_files import TEXT_TOKENS
from datasets.utils.own_files import OwnFiles, gather, listed_in, refuse_equal_names, spoken_names, without
from datasets.utils.own_list import SUFFIXES, Row, read_list
from datasets.utils.samples import FileSamples, PairFiles
from datasets.utils.tokens import tokenize
from datasets.utils.vqa import Question, question_of
from datasets.utils.vqa_files import QuestionFiles
from utils.conf import warn_once
from utils.errors import UserError
from utils.free_memory import require
from utils.settings import option

MEAN, STD = file_streams.IMAGENET
FolderPath = Annotated[
    Path, "folder with a subfolder per class (or train/ and test/ with them), or a .csv or .jsonl list"
]
ImageSize = Annotated[int, "side of the square images in pixels"]
TestShare = Annotated[float | None, "share of each class that is for tests, by a hash of the path (default: 0.2)"]
Background = Annotated[Literal["white", "black", "ignore"], "what transparent images are laid on; ignore drops alpha"]
SkipBroken = Annotated[int, "so many unreadable images are left out and recorded; more are refused"]


class OwnStream:
    """What all variants share: the files, their size, and what is told about them before training."""

    VARIANT_FLAG = "folder_path"  # its value decides which class builds the stream

    @classmethod
    def variant(cls, source: str | Path) -> type:
        """The class for a folder or list: by its columns question, text, task and domain."""
        path = listed_in(Path(os.path.expanduser(source)))
        if path is None or path.suffix.lower() not in SUFFIXES:
            return SequentialFolder
        found = read_list(path)
        if found.kind == "question":
            return FolderQuestions
        label_places = {(row.label, row.place) for row in found.rows if row.split in {"", "train"}}
        shared = len(label_places) > len({label for label, _ in label_places})
        domains = "domain" in found.columns or ("task" in found.columns and shared)
        if found.kind == "text":
            return FolderPairDomains if domains else FolderPairs
        return FolderDomains if domains else SequentialFolder

    def read_files(self, folder_path: Path, test_share: float | None, image_size: int) -> OwnFiles:
        if image_size < 1:
            raise UserError(f"--image_size {image_size}: it must be at least 1")
        require(2 * 3 * 4 * image_size**2, f"one image of --image_size {image_size}, augmented and plain,", "lower it")
        self.SIZE = (image_size, image_size)
        self.resize = T.Compose([T.Resize(image_size, BICUBIC), T.CenterCrop(image_size)])
        self.own = gather(Path(folder_path).expanduser(), test_share)
        if self.own.unused:
            warn_once(f"{self.own.source}: columns that are not used: {', '.join(self.own.unused)}")
        return self.own

    def set_care(self, transparency: str, skip_broken: int) -> None:
        if skip_broken < 0:
            raise UserError(f"--skip_broken {skip_broken}: give the number of unreadable images that may be left out")
        self.background, self.skip_broken = (None if transparency == "ignore" else transparency), skip_broken
        self.skipped: list[str] = []
        self.transparent = 0

    def laid(self, samples: FileSamples) -> FileSamples:
        samples.lay_on(self.background)
        return samples

    def check_samples(self) -> None:
        """Unreadable images up to --skip_broken are left out; the transparent ones are counted."""
        cache, progress = base_path(self.args) / "features", not option(self.args, "non_verbose", False)
        paths = [row.image for row in self.own.train + self.own.test]
        bad = unreadable(paths, cache, progress) if self.skip_broken else []
        if bad and len(bad) <= self.skip_broken:
            self.skipped = [f"{path} ({reason})" for path, reason in bad]
            warn_once(
                f"{len(bad)} of {len(set(paths))} images cannot be read and are left out: {'; '.join(self.skipped)}"
            )
            self.own = without(self.own, {path for path, _ in bad})
            self.forget_samples()
        super().check_samples()
        if self.background:
            self.transparent = len(transparent(paths, cache, progress))
        if self.transparent:
            print(f"{self.transparent} of {len(set(paths))} images are transparent: laid on {self.background}")

    def forget_samples(self) -> None:
        self._samples.clear()

    def facts(self) -> dict:
        """For the record."""
        told = {"transparent": self.transparent, "skipped": self.skipped, "test_images_by_hash": self.own.drawn}
        return (super().facts() if hasattr(super(), "facts") else {}) | told | {"places": self.own.places}

    def get_data_loaders(self):
        loaders = super().get_data_loaders()
        self.train_loader.dataset.not_aug_resize = self.resize
        return loaders


class SequentialFolder(OwnStream, ContinualDataset):
    """`folder_path` is a folder with a subfolder per class, with train/<class>/ and test/<class>/ (or val/), or a list:
    data.csv or data.jsonl in the folder, or its own path.

    A list has any of the columns image, label, split, task, domain, text, question, answers. Without `split` (or
    train/ and test/) a hash of the path draws --test_share of each class. `task` sets the tasks; `domain`, or a class
    in several tasks, makes the stream domain-incremental; `text` makes each sample an image with a text; `question`
    and `answers` (a JSON list, or separated by |) make it question answering.

    Classes are ordered by name, numbers by value; the first tasks get one more class if the count is not divisible.
    """

    NAME = "seq-folder"
    SETTING = "class-il"
    MEAN, STD = MEAN, STD
    DEFAULTS = {"batch_size": 32, "n_epochs": 10, "backbone": "resnet18"}

    def __init__(
        self,
        args: Namespace,
        folder_path: FolderPath,
        n_tasks: Annotated[int | None, "tasks of equal size (default: 5, or the column task)"] = None,
        image_size: ImageSize = 224,
        class_names: Annotated[Path | None, "names for CLIP: JSON {class: name}, or lines of class and name"] = None,
        test_share: TestShare = None,
        transparency: Background = "white",
        skip_broken: SkipBroken = 0,
    ):
        own = self.read_files(folder_path, test_share, image_size)
        self.set_care(transparency, skip_broken)
        self.set_tasks(args, own, n_tasks)
        self.CLASS_NAMES = spoken_names(class_names and Path(class_names).expanduser(), own.classes)
        refuse_equal_names(own.source, self.CLASS_NAMES)
        plain = [T.ToTensor(), T.Normalize(self.MEAN, self.STD)]
        self.TRANSFORM = T.Compose(
            [T.RandomResizedCrop(image_size, interpolation=BICUBIC), T.RandomHorizontalFlip(), *plain]
        )
        self.TEST_TRANSFORM = T.Compose([self.resize, *plain])
        super().__init__(args)

    def set_tasks(self, args: Namespace, own: OwnFiles, n_tasks: int | None) -> None:
        """Classes of each task: equal shares, or what the column task says."""
        sizes = [flag for flag in ("first_classes", "classes_per_task") if option(args, flag)]
        given = [*(["n_tasks"] if n_tasks is not None else []), *sizes]
        if own.places and given:
            raise UserError(
                f"--{given[0]}: the column task or domain of {own.source} sets the tasks; leave the flag out"
            )
        if sizes and n_tasks is not None:
            raise UserError(f"--n_tasks and --{sizes[0]} both set the tasks of {own.source}: use one")
        n_classes = len(own.classes)
        if n_tasks is not None and not 1 <= n_tasks <= n_classes:
            raise UserError(
                f"--n_tasks {n_tasks} does not fit the {n_classes} classes of {own.source}: give 1 to {n_classes}"
            )
        self.N_TASKS = len(own.places) or n_tasks or min(5, n_classes)
        if self.SETTING == "domain-il":
            self.N_CLASSES_PER_TASK = n_classes
            return
        if own.places:
            place_of = {row.label: row.place for row in own.train}
            counts = [sum(place_of[name] == place for name in own.classes) for place in own.places]
        else:
            each, rest = divmod(n_classes, self.N_TASKS)
            counts = [each + 1] * rest + [each] * (self.N_TASKS - rest)
        self.N_CLASSES_PER_TASK = counts if len(set(counts)) > 1 else counts[0]

    def load(self, train: bool) -> FileSamples:
        rows = self.own.train if train else self.own.test
        number = {name: label for label, name in enumerate(self.own.classes)}
        samples = self.laid(self.samples_of(rows, [number[row.label] for row in rows]))
        if self.SETTING == "domain-il":
            task = {place: number for number, place in enumerate(self.own.places)}
            samples.task_ids = torch.tensor([task[row.place] for row in rows])
        return samples

    def samples_of(self, rows: list[Row], labels: list[int]) -> FileSamples:
        return FileSamples([row.image for row in rows], labels)

    def get_transform(self) -> T.Compose:
        return T.Compose([T.ToPILImage(), self.TRANSFORM])


class FolderDomains(SequentialFolder):
    """The same classes in each task, whose images are of another kind."""

    SETTING = "domain-il"


class FolderPairs(SequentialFolder):
    """Images with one text each, cut to what the run's CLIP reads."""

    HAS_TEXT = True
    CLIP_BACKBONE = "ViT-B/16"
    MEAN, STD = file_streams.CLIP
    DEFAULTS = {"batch_size": 32, "n_epochs": 10, "backbone": "clip-fused"}

    def samples_of(self, rows: list[Row], labels: list[int]) -> PairFiles:
        texts = [row.text for row in rows]
        samples = PairFiles([row.image for row in rows], tokenize(texts, self.args, cut=TEXT_TOKENS), labels)
        samples.captions = texts
        return samples

    def facts(self) -> dict:
        empty = sum(not row.text for row in self.own.train + self.own.test)
        if empty:
            warn_once(f"{self.own.source}: {empty} images have an empty text")
        return super().facts() | {"empty_texts": empty}


class FolderPairDomains(FolderPairs):
    SETTING = "domain-il"


class FolderQuestions(OwnStream, QuestionFiles):
    """Questions about images in tasks by a column task or domain; classes are answers of training questions."""

    NAME = SequentialFolder.NAME
    DEFAULTS = {"batch_size": 32, "n_epochs": 10, "backbone": "clip-fused"}

    def __init__(
        self,
        args: Namespace,
        folder_path: FolderPath,
        image_size: ImageSize = 224,
        min_answer_freq: Annotated[int, "training questions that an answer needs to be a class"] = 1,
        max_answers: Annotated[int, "most answers of a task that become classes, the frequent ones first"] = 3000,
        test_share: TestShare = None,
        transparency: Background = "white",
        skip_broken: SkipBroken = 0,
    ):
        own = self.read_files(folder_path, test_share, image_size)
        if not own.places:
            raise UserError(f"{own.source}: questions need a column task or domain, which says what task each is in")
        self.set_care(transparency, skip_broken)
        self.TRANSFORM = self.TEST_TRANSFORM = T.Compose(
            [*self.resize.transforms, T.ToTensor(), T.Normalize(self.MEAN, self.STD)]
        )
        super().__init__(args, own.places, min_answer_freq, max_answers)

    def read(self, name: str, train: bool) -> list[Question]:
        rows = self.own.train if train else self.own.test
        return [question_of(row.image, row.text, row.answers) for row in rows if row.place == name]

    def load(self, train: bool) -> PairFiles:
        return self.laid(super().load(train))

    def forget_samples(self) -> None:
        super().forget_samples()
        self._questions.clear()
