"""ImageNet-A, hard images of 200 ImageNet classes, in ten tasks of twenty

<base_path>/imagenet-a/<wnid>/ with README.txt, or train/ and test/ folders, read as `seq-imagenet-r` reads its own. No
split is published: without lists or folders a fifth of the images is held out by name, with a warning.
"""

from datasets.seq_imagenet_r import SequentialImageNetR
from datasets.utils.sources import Source


class SequentialImageNetA(SequentialImageNetR):
    NAME = "seq-imagenet-a"
    SETTING = "class-il"
    FOLDER = "imagenet-a"
    TEMPLATES = ["a photo of a {}.", "a photo of the {}.", "a bad photo of a {}."]
    FILES = (
        Source(
            ("imagenet-a",),
            "github.com/hendrycks/natural-adv-examples",
            "7,500 images",
            by_hand="unpack imagenet-a.tar, linked in github.com/hendrycks/natural-adv-examples, into {base}",
        ),
    )
    N_IMAGES = 7_500
