"""Picture world, questions by rules: an image and a vague wording decide together which fact is asked, in four tasks"""

from argparse import Namespace
from typing import Literal

from datasets.tiny_world import questions, streams, world
from datasets.tiny_world.captions import NAMES
from datasets.tiny_world.scenes import SCENES
from datasets.utils.tiny_questions import TinyQuestions


class CloveTinyRules(TinyQuestions):
    """A task has three groups of images and three wordings; group and wording give the fact that is asked by a Latin
    square, which turns with the task. --factor is what the images of a group share: kind, scene or style of drawing;
    with none the three questions are plain, and the groups (kinds) do not matter. Answers are colors, patterns, and
    scenes (kind, none) or kinds (scene, style)."""

    NAME = "clove-tiny-rules"
    SETTING = "domain-il"
    N_TASKS = questions.RULE_TASKS
    CLASS_NAMES = [*world.COLOURS, *world.PATTERNS, *SCENES, *NAMES]
    N_CLASSES_PER_TASK = len(CLASS_NAMES)
    task = staticmethod(streams.clove_tiny_rules)

    def __init__(
        self, args: Namespace, picture_seed: int = 0, factor: Literal["kind", "scene", "style", "none"] = "kind"
    ):
        super().__init__(args, picture_seed)
        self.task_settings = {"factor": factor}
