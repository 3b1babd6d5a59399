"""SimpleCIL: nearest class mean by cosine on frozen CLIP features, without any training.

Zhou et al., IJCV 2024, arXiv 2303.07338. The method `ncm`, except that a class mean is that of raw features, as in the
released code, where ncm averages unit features.

Choices: CLIP's image tower stands in for the paper's ViT. --text_weight w draws the unit prototypes toward the class
name's text as in ncm; the paper has none, so 0 by default.

No table has a row of it; on the picture world:
    python main.py --model simplecil --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.ncm import Ncm


class SimpleCil(Ncm):
    NAME = "simplecil"

    def rows(self, features):
        return features
