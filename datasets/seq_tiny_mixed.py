"""Picture world, class-il: the 60 classes of seq-tiny, half of the images in a style that pre-training knows"""

from datasets.seq_tiny import SeqTiny
from datasets.tiny_world import streams
from datasets.utils import tiny_streams
from datasets.utils.samples import ArraySamples

FLAT_SHARE = 0.5


class SeqTinyMixed(SeqTiny):
    """One teacher is wrong for part of the images: the pre-trained CLIP reads the flat half (97 %) and guesses at much
    of the stitched half (47 %); a model tuned on earlier tasks reads stitches and may have forgotten."""

    NAME = "seq-tiny-mixed"
    SETTING = "class-il"

    def load(self, train: bool) -> ArraySamples:
        settings = self.picture_seed, self.style, self.shift, FLAT_SHARE

        def build():
            found = streams.seq_tiny(train, *settings)
            return {"images": found["images"], "labels": found["labels"]}, {}

        tensors, _ = tiny_streams.drawn(self.args, self.NAME, train, settings, build)
        return ArraySamples(tensors["images"], tensors["labels"])
