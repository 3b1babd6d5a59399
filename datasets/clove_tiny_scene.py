"""Picture world, question answering by scene: six tasks, each showing one scene (after CLOVE's scenes)"""

from datasets.tiny_world import streams
from datasets.tiny_world.captions import QUESTION_KINDS
from datasets.utils.tiny_questions import ANSWERS, TinyQuestions


class CloveTinyScene(TinyQuestions):
    NAME = "clove-tiny-scene"
    SETTING = "domain-il"
    N_TASKS = len(streams.CLOVE_SCENES)
    CLASS_NAMES = list(dict.fromkeys(answer for kind in QUESTION_KINDS if kind != "scene" for answer in ANSWERS[kind]))
    N_CLASSES_PER_TASK = len(CLASS_NAMES)
    task = staticmethod(streams.clove_tiny_scene)
