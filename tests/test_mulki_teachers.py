"""MulKI's teachers in edge cases: classes and tasks without images, bf16 products, what a checkpoint writes."""

import hashlib

import pytest
import torch
from safetensors import safe_open

from tests.clip_toys import begun, toy
from tests.test_mulki_penalty import Case
from utils.engine import checkpoint
from utils.engine.module_state import SKIP


def test_the_text_of_a_class_without_images_is_not_pushed():
    """Its prototype would be the zero vector, a target among the others."""
    case = Case(unlabelled=6, rel="it,vv")
    x, names = case.student()
    t = case.model.teachers
    assert t.known.tolist() == [0, 2, 3] and float(t.visuals[:, 1].norm()) == 0
    loss = case.model.elicit(x, names, case.labels - 5, t.visuals)
    (pushed,) = torch.autograd.grad(loss, [names])
    assert pushed[1].norm() == 0 and pushed[[0, 2, 3]].norm(dim=1).min() > 1e-3
    assert loss.isfinite() and case.model.step(case.inputs, case.labels).isfinite()


def test_a_task_without_labelled_images_has_no_teachers_and_ends():
    made = toy()
    made.dataset.get_data_loaders()
    made.dataset.train_loader.dataset.targets.fill_(-1)
    made.model.meta_begin_task(made.dataset)
    assert made.model.teachers.texts is None
    made.model.meta_end_task(made.dataset)


def test_between_tasks_nothing_is_held():
    model, inputs, labels, _ = begun(1, text_bank="seen", cache_teacher=1, elicit="student")
    assert {k for k, v in model.teachers.state().items() if v is None} == {"pictures", "sentences"}
    model.meta_end_task(model.dataset)
    assert set(model.teachers.state().values()) == {None} and model.previous is None and model.start is None


@pytest.mark.parametrize("kept", [0, 1])
def test_bf16_teachers_agree_with_the_student_they_were_copied_from(kept):
    """With -O 2 the student's towers run in bf16: so do the teachers', or relations would ask for the rounding."""
    case = Case(code_optimization=2, cache_teacher=kept, text_bank="seen", moved=False)
    model, split = case.model, case.model.dataset.train_loader.dataset
    with torch.autocast("cpu", torch.bfloat16):
        texts, known = model.name_rows(model.net, 5, 9), model.name_rows(model.net, 0, 5)
        images = model.image_rows(model.net, model.net.normalize_images(split.samples.images(split.rows)))
        taught = model.teach(case.split_pixels, torch.arange(len(split)))[1]
    for own, teacher in ((texts, model.teachers.texts[1]), (known, model.teachers.bank[1]), (images, taught)):
        torch.testing.assert_close(teacher, own, atol=2e-3 if teacher is taught else 1e-6, rtol=0)
        assert (own.detach() - teacher).abs().mean() < 1e-4
    plain = Case(cache_teacher=kept, moved=False).model
    assert (plain.teachers.texts[0] - model.teachers.texts[0]).abs().max() > 1e-4, "bf16 rounds"
    assert (
        plain.teach(case.split_pixels, torch.arange(len(split)))[0]
        - model.teach(case.split_pixels, torch.arange(len(split)))[0]
    ).abs().max() > 1e-4


def test_the_weights_at_the_start_are_the_previous_models_and_written_once(tmp_path):
    model, inputs, labels, _ = begun(1)
    assert model.start and all(p is dict(model.previous.named_parameters())[n] for n, p in model.start.items())
    model.meta_observe(inputs, labels, inputs)
    state, lost = checkpoint.capture(model, SKIP | {"run", "forward_counter"} | model.checkpoint_skip())
    checkpoint.save(tmp_path / "mid.safetensors", state, model="mulki")
    with safe_open(tmp_path / "mid.safetensors", framework="pt") as file:
        large = [(k, file.get_tensor(k)) for k in file.keys() if file.get_tensor(k).numel() > 500]
    same = {}
    for name, tensor in large:
        same.setdefault(hashlib.sha256(tensor.numpy().tobytes()).hexdigest(), []).append(name)
    assert not lost and len(large) > 50
    assert not [
        names for names in same.values() if len(names) > 1 and any("previous" in n or "start" in n for n in names)
    ]
    model.connect()
    half, *_ = begun(1, teacher_dtype="bf16")
    assert all(p.dtype == torch.float32 for p in half.start.values()), "teachers of another precision are no start"
