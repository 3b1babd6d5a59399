"""SUN-300: the first 300 scenes of SUN397 once indoor and outdoor forms are joined, in ten tasks of thirty

The classes of C3Box and ENGINE: names of SUN397 cut at the last "/" make 362, of which the first 300 in the order of
bytes are taken, abbey to ski slope. Their own split is not published: each image keeps the part it has in `seq-sun397`.
"""

from pathlib import Path

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS, Rows
from datasets.utils.sources import SOURCES


def first_scenes(root: Path, n_classes: int = 300) -> tuple[Rows, Rows, list[str]]:
    """Rows of seq-sun397 in the joined classes."""
    train, test, fine = READERS["sun397"](root)
    joined = [name.rsplit("/", 1)[0] for name in fine]
    names = sorted(set(joined), key=str.encode)[:n_classes]
    label = {name: number for number, name in enumerate(names)}
    parts = [[(path, label[joined[k]]) for path, k in rows if joined[k] in label] for rows in (train, test)]
    return *parts, names


class SequentialSUN300(ClipStream, Listed):
    NAME = "seq-sun300"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 30
    TEMPLATES = list(DOMAINS["sun397"].templates)
    FILES = (SOURCES["sun397"],)
    READ = staticmethod(first_scenes)
