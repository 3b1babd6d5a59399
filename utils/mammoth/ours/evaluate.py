"""Evaluation, under the name that method files import."""

from utils.engine.evaluate import evaluate, mask_classes  # noqa: F401
