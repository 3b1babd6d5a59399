"""CGIL against the method file of a checkout of Mammoth: logits of seen names, and all names in the released scoring.

MAMMOTH_PATH=<checkout> python -m pytest -m mammoth tests/test_mammoth_parity.py. The checkout's file is used as
a plug-in without changes; it reads CLIP through `clip.load` and `clip.tokenize`, which return the embedded tiny CLIP
here. Its V_c (`prompt_parameters_<class>`) and g are then copied into ours. No checkout was available when this file
was written: it has not been run in this form. It does not cover the optimizer, the generators and the diffusion, whose
classes it would have to call by their internal names; those were compared once by hand (see "Choices" in
models/cgil.py).
"""

import copy
import os
import sys
import types
from unittest import mock

import pytest
import torch

from tests import contract
from tests.conftest import in_child

CHECKOUT = os.environ.get("MAMMOTH_PATH")
FORMS = {
    "combo": {},
    "V_c": {"combo_context": 0, "n_context": 2},
    "V": {"combo_context": 0, "general_context": 1, "n_context": 2},
    "g": {"combo_context": 0, "generated_context": 1},
}
RUN = {"g_models": "gauss", "num_epochs_alignment": 1, "stop_after": 1, "align_with_ortholoss": 0}
pytestmark = [
    pytest.mark.mammoth,
    pytest.mark.skipif(not CHECKOUT, reason="needs a checkout of Mammoth: MAMMOTH_PATH=<folder>"),
]


def released(net, **flags):
    """Their method after two of three tasks of the toy stream."""
    import clip

    from utils.cli import plugins

    sys.modules.setdefault("wandb", types.SimpleNamespace(run=None))
    plugins.use([CHECKOUT])
    handed_out = mock.patch.multiple(
        clip,
        load=lambda *a, **k: (copy.deepcopy(net.clip).float(), net.preprocess),
        tokenize=lambda texts, *a, **k: net.tokenize([texts] if isinstance(texts, str) else list(texts)),
    )
    with handed_out:
        return contract.build("plugin:cgil", trained=True, lr=0.01, **RUN | flags).model.eval()


@torch.no_grad()
def compare(form):
    ours = contract.build("cgil", trained=True, future_scoring="mammoth", **RUN | FORMS[form]).model.eval()
    theirs = released(ours.net, **FORMS[form])
    prompter = next(m for m in theirs.modules() if hasattr(m, "prompt_parameters_0"))
    if ours.has_v:
        for c, row in enumerate(ours.V):
            row.copy_(getattr(prompter, f"prompt_parameters_{c}").view_as(row))
    if ours.has_g:
        shapes = [p.shape for p in ours.g.parameters()]
        made = next(m for m in theirs.modules() if [p.shape for p in m.parameters()] == shapes)
        for mine, other in zip(ours.g.parameters(), made.parameters(), strict=True):
            mine.copy_(other)
    ours.keys = None
    x = torch.randn(6, 3, ours.net.resolution, ours.net.resolution, generator=torch.Generator().manual_seed(0))
    size = ours.net.logit_scale.item()
    seen = ours.n_seen_classes
    torch.testing.assert_close(ours(x), theirs(x)[:, :seen], atol=1e-6 * size, rtol=1e-5)
    theirs_future = theirs.future_forward(x)
    torch.testing.assert_close(ours.future_forward(x), theirs_future, atol=1e-4 * size, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_released_scoring(form):
    with contract.toys():
        assert in_child(lambda: compare(form)) == 0
