"""The contract checks can fail: methods with one fault each, and the check that must find it."""

import copy
import math
import random
from unittest import mock

import pytest
import torch

from models.sgd import Sgd
from tests import test_contract_models as checks
from utils.cli import registry
from utils.engine import evaluate
from utils.errors import UserError
from utils.settings import SETTINGS


class Broken(Sgd):
    """Base of methods with one fault each; the check named in FAULTS has to find it."""

    NAME = "broken"


class AddsPosition(Broken):
    def forward(self, x):
        return self.net(x) + torch.arange(len(x))[:, None]


class WholeBatch(Broken):
    def forward(self, x):
        outputs = self.net(x)
        return outputs - outputs.mean(0)


class HiddenCopy(Broken):
    def end_task(self, dataset):
        self._teacher = copy.deepcopy(self.net)


class CountsInForward(Broken):
    seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.net(x)


class DrawsInForward(Broken):
    def forward(self, x):
        return self.net(x) + 0 * torch.rand(1)


class Unseeded(Broken):
    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return super().observe(inputs + random.SystemRandom().random(), labels, not_aug_inputs)


class Box:
    scale = 1.0


class LosesState(Broken):
    def __init__(self, *args):
        super().__init__(*args)
        self.box = Box()

    def end_task(self, dataset):
        self.box.scale += 1

    def forward(self, x):
        return self.net(x) * self.box.scale


class Infinite(Broken):
    def forward(self, x):
        return self.net(x) / 0


class Wide(Broken):
    def forward(self, x):
        return self.net(x).repeat(1, 2)


class DeadFlag(Broken):
    @staticmethod
    def get_parser(parser):
        parser.add_argument("--nothing", type=float, default=1.0, help="read by nobody")
        return parser


class ForgottenFlag(Broken):
    NOT_TRIED = {"gone": "the flag that was meant has gone"}


class NoReason(DeadFlag):
    NOT_TRIED = {"nothing": "no"}


class TriedNowhere(DeadFlag):
    NOT_TRIED = {"nothing": "tests/test_pair.py tries it"}


class Meddler(Broken):
    @staticmethod
    def get_parser(parser):
        next(a for a in parser._actions if a.dest == "optimizer").choices = ["sgd"]
        return parser


class FitsAll(Broken):
    COMPATIBILITY = list(SETTINGS)


class FewImages(Broken):
    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return super().observe(inputs, labels, not_aug_inputs) + 0 * inputs.std(0).mean()


class NoEndOfEpoch(Broken):
    def meta_end_epoch(self, epoch, dataset):
        pass


class Spoilt(Broken):
    def end_task(self, dataset):
        self.register_buffer("statistics", torch.tensor([math.nan]))


class Uncounted(Broken):
    def forward(self, x):
        return self.net.forward(x)


class FitsTestStatistics(Broken):
    def end_task(self, dataset):
        images = torch.cat([batch[0] for batch in dataset.test_loaders[-1]])
        self.net.norm.running_mean += images.mean()


class LooksAhead(Broken):
    def begin_task(self, dataset):
        images = dataset.samples(True).data
        self.net.classifier.bias.data += images.float().mean() / 1000


FAULTS = [
    (AddsPosition, checks.shuffled_batch_gives_shuffled_outputs),
    (AddsPosition, checks.batch_of_one_equals_batch_of_many),
    (WholeBatch, checks.batch_of_one_equals_batch_of_many),
    (HiddenCopy, checks.stored_bytes_true),
    (Infinite, checks.forward_shape),
    (CountsInForward, checks.evaluation_leaves_the_state),
    (DrawsInForward, checks.evaluation_leaves_the_state),
    (Unseeded, checks.one_seed_one_result),
    (LosesState, checks.state_round_trip),
    (Wide, checks.forward_shape),
    (Spoilt, checks.finite),
    (DeadFlag, checks.every_flag_changes_something),
    (ForgottenFlag, checks.what_is_not_tried_is_a_flag_with_a_reason),
    (NoReason, checks.what_is_not_tried_is_a_flag_with_a_reason),
    (TriedNowhere, checks.what_is_not_tried_is_a_flag_with_a_reason),
    (Meddler, checks.only_adds_flags_that_parse),
    (NoEndOfEpoch, checks.hook_order),
    (FitsAll, checks.refuses_a_setting_it_does_not_name),
    (FewImages, checks.single_last_batch),
    (Uncounted, checks.images_are_counted),
    (FitsTestStatistics, checks.learns_from_nothing_it_may_not_see),
    (LooksAhead, checks.learns_from_nothing_it_may_not_see),
]


@pytest.mark.parametrize("fault, check", FAULTS, ids=lambda x: x.__name__)
def test_a_broken_method_is_found(fault, check, tmp_path):
    checks.trained.cache_clear()
    with mock.patch.dict(registry._registered["model"], {"broken": fault}), pytest.raises((AssertionError, UserError)):
        check("broken", tmp_path) if check.__code__.co_argcount == 2 else check("broken")
    checks.trained.cache_clear()


def test_a_task_id_given_in_class_il_is_found(monkeypatch):
    def told(model, inputs, task):
        return model(inputs, task=task)

    class Peeks(Broken):
        def forward(self, x, task=None):
            return self.net(x)

    monkeypatch.setattr(evaluate, "logits_of", told)
    with mock.patch.dict(registry._registered["model"], {"broken": Peeks}), pytest.raises(AssertionError):
        checks.no_task_id_where_it_is_unknown("broken")


def test_a_method_without_fault_passes():
    checks.trained.cache_clear()
    with mock.patch.dict(registry._registered["model"], {"broken": Broken}):
        for check in {check for _, check in FAULTS if check.__code__.co_argcount == 1}:
            check("broken")
    checks.trained.cache_clear()
