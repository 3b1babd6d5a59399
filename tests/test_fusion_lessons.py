"""What the tiny fusion is taught: captions with one blank, never a question; the blank is what the image shows."""

import numpy as np
import pytest
import torch

from backbone.clip import load_clip
from backbone.fusion import FusionTransformer
from datasets.tiny_world import captions, questions, streams, world
from scripts import train_tiny_fusion as script


@pytest.fixture(scope="module")
def lesson():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "render", lambda spec: seen.append(spec) or torch.zeros(len(spec["index"]), 3, 48, 48))
        _, texts, rows, facts = script.blanks(script.TRAIN_SEED, np.arange(400))
    return seen[0], texts, rows, facts


def test_the_caption_with_its_blank_filled_is_true_of_the_image(lesson):
    spec, texts, rows, facts = lesson
    for n, (text, row, fact) in enumerate(zip(texts, rows.tolist(), facts, strict=True)):
        i = n % 400
        name, value = script.VOCABULARY[row]
        assert name == fact and text.split().count("X") == 1
        if fact == "relation":
            before = text.split(" X ")[0]
            turned = captions.NAMES[spec["kind"][i, 1]] in before
            assert value == spec["relation"][i] ^ turned
            continue
        shown = {"kind": spec["kind"][i, 0], "count": spec["count"][i] - 1, "scene": spec["scene"][i]}
        assert value == (shown[fact] if fact in shown else spec[fact][i, 0])
        assert script.FACTS[fact][value] not in text.split()


def test_two_captions_of_an_image_have_different_blanks_mostly_and_every_fact_is_blank_sometimes(lesson):
    spec, _, _, facts = lesson
    other = facts[:400] != facts[400:]
    assert other.mean() > 0.8 and other[spec["layout"] == world.SINGLE].all()
    assert set(facts) == set(script.FACTS) and min(np.unique(facts, return_counts=True)[1]) > 40


def test_no_lesson_is_a_question_of_a_stream(lesson):
    words = {word for text in lesson[1] for word in text.split()}
    asked = {text for task in range(6) for text in small(streams.clove_tiny_function, task)["questions"]}
    asked |= set(questions.VAGUE) | set(questions.PLAIN.values())
    assert not any("?" in word for word in words) and not asked & set(lesson[1])
    assert not words & {"what", "where", "how", "are", "more", "fewer", "than", "yes", "no"}


def small(stream, task) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CLOVE_SIZE", {True: 60, False: 30})
        patch.setattr(streams, "render", lambda spec: torch.zeros(len(spec["index"]), 3, 48, 48))
        return stream(task, True)


def test_input_layers_start_as_the_projections_of_clip():
    clip = load_clip("tiny")
    fusion = FusionTransformer(clip.vision_width, clip.text_width, clip.embed_dim, 1, 4)
    script.align(fusion, clip)
    tokens, states = torch.randn(2, 3, clip.vision_width), torch.randn(2, 3, clip.text_width)
    torch.testing.assert_close(fusion.image_in(tokens), clip.project_image(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fusion.text_in(states), clip.project_text(states), atol=1e-5, rtol=1e-5)
