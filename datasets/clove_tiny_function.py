"""Picture world, question answering by kind: six tasks, each asking one kind of question (after CLOVE's functions)"""

from datasets.tiny_world import streams
from datasets.tiny_world.captions import QUESTION_KINDS
from datasets.utils.tiny_questions import ANSWERS, TinyQuestions


class CloveTinyFunction(TinyQuestions):
    NAME = "clove-tiny-function"
    SETTING = "domain-il"
    N_TASKS = len(QUESTION_KINDS)
    CLASS_NAMES = list(dict.fromkeys(answer for kind in QUESTION_KINDS for answer in ANSWERS[kind]))
    N_CLASSES_PER_TASK = len(CLASS_NAMES)
    task = staticmethod(streams.clove_tiny_function)
