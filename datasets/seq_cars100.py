"""Stanford Cars, the first 100 makes by name, in ten tasks of ten

The classes of C3Box and ENGINE: names with _ for blanks, sorted by bytes, the first 100 of 196. Files as `seq-cars196`.
"""

from pathlib import Path

from datasets.seq_cars196 import SequentialCars196
from datasets.utils.file_streams import Content
from datasets.utils.image_streams import subset


class SequentialCars100(SequentialCars196):
    NAME = "seq-cars100"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    N_IMAGES = None

    def read(self, base: Path) -> Content:
        whole = SequentialCars196(self.args).read(base)
        key = [name.replace(" ", "_").encode() for name in whole.names]
        return subset(whole, sorted(range(len(key)), key=key.__getitem__)[: self.N_CLASSES])
