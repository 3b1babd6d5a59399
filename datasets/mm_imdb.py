"""MM-IMDb, movies of one genre: posters with plots, classes are genres, in 5, 10 or 20 tasks

Arevalo et al., arXiv 1702.01992. The dataset has several labels per movie (15,552 training, 2,608 dev and 7,799 test
movies, reported), which a class-incremental stream cannot split; this one keeps the movies that have exactly one genre.

Files under <base_path>/mmimdb: split.json {train, dev, test: ids} and, for each id, the poster and its table {plot,
genres}: dataset/<id>.jpeg and dataset/<id>.json (as published), or images/<id>.jpeg and labels/<id>.json.

Choices:
- Classes are those of the 23 usual genres with at least --min_movies single-genre training movies and one test movie:
  some genres hardly ever occur alone. The order is the usual one, most frequent first.
- --phases 5, 10 or 20; the first tasks get one more class if the count is not divisible.
- dev is used for training. The first plot is the text, cut at 77 tokens.
- News, Adult, Talk-Show and Reality-TV are not classes, and do not count as a movie's genre.
"""

from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from datasets.utils.fetch import base_path
from datasets.utils.mm_files import Captioned, CaptionedFiles
from datasets.utils.sources import Archive, Source
from utils.errors import UserError, shown

GENRES = [
    "Drama",
    "Comedy",
    "Romance",
    "Thriller",
    "Crime",
    "Action",
    "Adventure",
    "Horror",
    "Documentary",
    "Mystery",
    "Sci-Fi",
    "Fantasy",
    "Family",
    "Biography",
    "War",
    "History",
    "Music",
    "Animation",
    "Musical",
    "Western",
    "Sport",
    "Short",
    "Film-Noir",
]
Movie = tuple[Path, str, str]  # poster, plot, genre


class MmImdb(CaptionedFiles):
    NAME = "mm-imdb"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = [3, 3, 2, 2, 2]
    MOST_CLASSES = len(GENRES)
    TEMPLATES = ["the poster of a {} movie."]
    FILES = (
        Source(
            ("mmimdb/split.json", "mmimdb/dataset|mmimdb/images"),
            "https://archive.org/download/mmimdb/mmimdb.tar.gz",
            "about 15 GB",
            (Archive("https://archive.org/download/mmimdb/mmimdb.tar.gz", None),),
        ),
    )

    def __init__(self, args: Namespace, phases: Literal[5, 10, 20] = 5, min_movies: int = 10):
        if min_movies < 1:
            raise UserError("--min_movies must be at least 1")
        self.args = args
        self.movies = {part: self.movies_of(base_path(args) / "mmimdb", part == "train") for part in ("train", "test")}
        counts = {part: {g: sum(m[2] == g for m in movies) for g in GENRES} for part, movies in self.movies.items()}
        self.genres = [g for g in GENRES if counts["train"][g] >= min_movies and counts["test"][g]]
        if not self.genres:
            raise UserError(f"--min_movies {min_movies}: no genre has that many single-genre training movies; lower it")
        super().__init__(args, phases, len(self.genres))

    def movies_of(self, root: Path, train: bool) -> list[Movie]:
        """Movies of one genre, in the order of the split."""
        split = root / "split.json"
        table = self.table(split)
        try:
            ids = [str(i) for part in (("train", "dev") if train else ("test",)) for i in table[part]]
        except (KeyError, TypeError) as error:
            raise self.broken(split, f"it does not have a list {error}") from None
        if strange := next((name for name in ids if "/" in name), None):
            raise self.broken(split, f"{shown(strange)} is not a movie id")
        found = []
        for name in ids:
            labels = first_file(
                root, [f"{folder}/{stem}.json" for folder in ("dataset", "labels") for stem in stems(name)]
            )
            if labels is None:
                raise UserError(
                    f"{split} lists {root / 'dataset' / name}.json, which does not exist (nor in labels/): "
                    "unpack the archive again"
                )
            row = self.table(labels)
            try:
                plots, genres = row["plot"], [g for g in row["genres"] if g in GENRES]
                plot = (plots[0] if isinstance(plots, list) else plots) if plots else ""
            except (KeyError, TypeError) as error:
                raise self.broken(labels, error) from None
            if len(genres) != 1:
                continue
            tried = [f"{folder}/{stem}.jpeg" for folder in ("dataset", "images") for stem in stems(name)]
            poster = first_file(root, tried)
            if poster is None:
                raise UserError(
                    f"{split} lists {root / tried[0]}, which does not exist (nor in images/): unpack the archive again"
                )
            found.append((poster, str(plot), genres[0]))
        return found

    def parts(self, base: Path) -> tuple[Captioned, Captioned, list[str]]:
        place = {genre: number for number, genre in enumerate(self.genres)}
        parts = []
        for movies in self.movies.values():
            kept = [movie for movie in movies if movie[2] in place]
            parts.append(Captioned([m[0] for m in kept], [m[1] for m in kept], [place[m[2]] for m in kept]))
        return *parts, [genre.lower() for genre in self.genres]


def stems(name: str) -> list[str]:
    """An id as it is, and with the zeros that make it seven or eight digits long."""
    return list(dict.fromkeys([name, name.zfill(7), name.zfill(8)]))


def first_file(root: Path, names: list[str]) -> Path | None:
    return next((root / name for name in names if Path(name).name in listing(root / Path(name).parent)), None)


@lru_cache(maxsize=8)
def listing(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
