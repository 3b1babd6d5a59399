"""CLOVE-scene: questions about Visual Genome images in six tasks by scene, as classification over answers

Lei et al., Symbolic Replay, AAAI 2023, arXiv 2208.12037; data of github.com/showlab/CLVQA. Six tasks of 20,000 training
and 3,000 val questions (reported); there is no test split, so val is the test set.

Files: <base_path>/clove/json/scene/scene_a#ShopAndDining_{train,val}.json .. scene_f#Outdoors (the # is part of the
name; quote it in a shell), or fcl_mmf_<task>_{train,val}.npy in npy/scene, npy or the folder itself; images in vg/image
or in vg/VG_100K and vg/VG_100K_2.

Choices:
- Classes are answers of training questions, in the official normalization: of each task the --max_answers most frequent
  that at least --min_answer_freq questions have; what is left out is reported and recorded.
- --clove_order: for scenes the letters a to f are the same in all published code.
"""

from argparse import Namespace

from datasets.utils.clove_stream import CloveStream


class CloveScene(CloveStream):
    NAME = "clove-scene"
    SETTING = "domain-il"
    N_TASKS = 6
    KIND = "scene"
    LETTERS = {
        "a": "ShopAndDining",
        "b": "Workplace",
        "c": "HomeOrHotel",
        "d": "Transportation",
        "e": "SportAndLeisure",
        "f": "Outdoors",
    }

    def __init__(self, args: Namespace, clove_order: str = "abcdef", min_answer_freq: int = 2, max_answers: int = 3000):
        super().__init__(args, clove_order, min_answer_freq, max_answers)

    def file_names(self, name: str) -> tuple[str, tuple[str, ...]]:
        letter = next(letter for letter, other in self.LETTERS.items() if other == name)
        return f"scene_{letter}#{name}", (f"{letter}#{name}", name)
