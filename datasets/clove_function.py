"""CLOVE-function: questions about images in six tasks by what they ask for, as classification over answers

Lei et al., Symbolic Replay, AAAI 2023, arXiv 2208.12037; data of github.com/showlab/CLVQA. Tasks have up to 20,000
training and 3,000 val questions (reported; scenetext 16,868 and 2,422); there is no test split, so val is the test set.

Files: <base_path>/clove/json/function/functional_<task>_{train,val}.json, or fcl_mmf_<task>_{train,val}.npy in
npy/function, npy or the folder itself; images in vg/image (or vg/VG_100K and vg/VG_100K_2), of scenetext in textvqa (or
textvqa/train_images, which holds TextVQA's val images as well).

Choices:
- Classes are answers of training questions, in the official normalization: of each task the --max_answers most frequent
  that at least --min_answer_freq questions have; what is left out (most of scenetext's words) is reported and recorded.
- --clove_order uses CLVQA's letters: o object, a attribute, r relation, l logical, k knowledge, s scenetext. CluMo's
  code numbers the same tasks alphabetically (a attribute, b knowledge, c logical, d object, e relation, f scenetext),
  so its "abcdef" is "aklors" here. Letters may be omitted: oarlk is the stream without scenetext.
"""

from argparse import Namespace

from datasets.utils.clove_stream import CloveStream


class CloveFunction(CloveStream):
    NAME = "clove-function"
    SETTING = "domain-il"
    N_TASKS = 6
    KIND = "function"
    LETTERS = {"o": "object", "a": "attribute", "r": "relation", "l": "logical", "k": "knowledge", "s": "scenetext"}
    OTHER_LETTERS = dict(zip("abcdef", "aklors", strict=True))

    def __init__(self, args: Namespace, clove_order: str = "oarlks", min_answer_freq: int = 2, max_answers: int = 3000):
        super().__init__(args, clove_order, min_answer_freq, max_answers)

    def file_names(self, name: str) -> tuple[str, tuple[str, ...]]:
        return f"functional_{name}", (name, f"functional_{name}")
