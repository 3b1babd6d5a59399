"""The names that files written for Mammoth import, and the behavior of the helpers."""

import importlib
import re
from argparse import ArgumentParser, Namespace

import pytest
import torch
from torch import nn
from torchvision import transforms as T

from utils import cli, flags
from utils.cli import plugins, registry
from utils.cli.registry import ROOT
from utils.errors import UserError

SURFACE = {
    "utils.args": "ArgumentParser Namespace List Optional add_rehearsal_args add_management_args add_experiment_args "
    "ContinualModel get_model_names binary_to_boolean_type custom_str_underscore field_with_aliases logging sys",
    "models.utils.continual_model": "ContinualModel",
    "models.utils.future_model": "FutureModel",
    "utils.buffer": "Buffer fill_buffer icarl_replay",
    "utils": "binary_to_boolean_type none_or_float custom_str_underscore smart_joint create_if_not_exists random_id "
    "in_notebook to_parsable_obj",
    "models": "get_model get_model_class get_model_names register_model",
    "datasets": "get_dataset get_dataset_class get_dataset_names register_dataset",
    "backbone": "MammothBackbone get_backbone get_backbone_class get_backbone_names register_backbone ReturnTypes "
    "xavier num_flat_features",
    "utils.conf": "get_device create_seeded_dataloader warn_once base_path get_checkpoint_path set_random_seed "
    "worker_init_fn",
    "utils.batch_norm": "bn_track_stats",
    "datasets.utils": "set_default_from_args",
    "datasets.utils.continual_dataset": "ContinualDataset store_masked_loaders fix_class_names_order "
    "MammothDatasetWrapper",
    "datasets.utils.gcl_dataset": "GCLDataset",
    "datasets.transforms.denormalization": "DeNormalize",
    "utils.schedulers": "get_scheduler CosineSchedule CosineSchedulerWithLinearWarmup",
    "utils.augmentations": "normalize random_flip random_crop random_grayscale strong_aug soft_aug apply_transform "
    "rand_bbox cutmix_data RepeatedTransform DoubleCompose DoubleTransform CustomRandomCrop CustomRandomHorizontalFlip",
    "utils.kornia_utils": "to_kornia_transform KorniaMultiAug KorniaAugNoGrad CustomKorniaRandAugment",
    "utils.status": "progress_bar ProgressBar",
    "utils.ring_buffer": "RingBuffer",
    "utils.autoaugment": "CIFAR10Policy ImageNetPolicy SVHNPolicy Cutout RandomErasing KorniaAugCutout",
    "utils.distributed": "make_dp CustomDP make_ddp wait_for_master",
    "utils.evaluate": "evaluate mask_classes",
    "utils.gss_buffer": "Buffer",
    "utils.no_bn": "bn_track_stats",
    "utils.checkpoints": "to_parsable_obj",
    "utils.mixup": "mixup",
    "utils.triplet": "batch_hard_triplet_loss negative_only_triplet_loss",
    "utils.spkdloss": "SPKDLoss",
    "utils.simclrloss": "SupConLoss",
    "utils.bmm": "BetaMixture1D",
    "utils.conditional_bn": "ConditionalBatchNorm1d ConditionalBatchNorm2d",
    "utils.magic": "persistent_locals",
    "utils.prompt_templates": "templates",
    "models.utils.lider_model": "LiderOptimizer add_lipschitz_args",
    "models.gem": "store_grad overwrite_grad",
    "models.agem": "project",
    "backbone.MNISTMLP": "MNISTMLP mnistmlp",
    "backbone.MNISTMLP_PNN": "MNISTMLP_PNN",
    "backbone.ResNetBlock": "ResNet BasicBlock resnet18 resnet34",
    "backbone.ResNet18_PNN": "resnet18_pnn",
    "backbone.vit": "VisionTransformer create_vision_transformer vit_base_patch16_224_prompt_prototype Block Mlp "
    "LoRAAttention get_init_weights_vit",
    "backbone.utils.modules": "AlphaModule ListModule",
    "backbone.utils.layers": "IncrementalClassifier",
    "backbone.utils.lora_utils": "LoRAAttention LoRAMlp LoRALayer",
    "datasets.utils.validation": "get_train_val",
    "datasets.utils.hf_download": "any_name_at_all",
}


@pytest.mark.parametrize("module", SURFACE)
def test_names_can_be_imported(module):
    held = importlib.import_module(module)
    for name in SURFACE[module].split():
        assert getattr(held, name) is not None


def test_star_imports_bring_what_files_use():
    for module in ("utils.args", "utils.augmentations"):
        found: dict = {}
        source = f"from {module} import *"
        exec(source, found)
        assert set(SURFACE[module].split()) <= set(found)


def test_every_module_for_other_files_is_in_the_table():
    """The folders mammoth/ hold what the table names, and what those modules share among themselves."""
    found = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in ROOT.glob("*/**/mammoth/**/*.py")
        if ".venv" not in p.parts
    }
    shared = {"backbone.mammoth.additive", "backbone.mammoth.columns"}
    assert len(found) > 20 and {name.replace(".mammoth", "").replace(".ours", "") for name in found - shared} <= set(
        SURFACE
    )


def test_refused_modules_say_why(tmp_path):
    (tmp_path / "x.py").write_text("NAME = 'x'\n")
    plugins.use([str(tmp_path)])
    try:
        for name in plugins.REFUSED:
            with pytest.raises(UserError, match=name):
                importlib.import_module(name)
    finally:
        plugins.use(None)


def test_ddp_needs_no_wrapper_and_dp_is_refused():
    distributed = importlib.import_module("utils.distributed")
    net = nn.Linear(1, 1)
    assert distributed.make_ddp(net) is net and distributed.wait_for_master() is None
    for call in (distributed.make_dp, distributed.CustomDP):
        with pytest.raises(UserError, match="--distributed ddp"):
            call(net)


def test_bn_track_stats():
    from utils.batch_norm import bn_track_stats

    net, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    with bn_track_stats(net, False):
        out = net(x)
    assert torch.allclose(out, (x - x.mean(0)) / (x.var(0, unbiased=False) + net.eps).sqrt(), atol=1e-5)
    assert torch.equal(net.running_mean, torch.zeros(3)) and net.track_running_stats
    with bn_track_stats(net, True):
        net(x)
    assert torch.allclose(net.running_mean, 0.1 * x.mean(0))


def test_ring_buffer_keeps_the_newest_of_each_task():
    from utils.ring_buffer import RingBuffer

    buffer = RingBuffer(6, 2)
    for task in (0, 1):
        values = torch.arange(5.0)[:, None] + 10 * task
        buffer.add_data(values, labels=torch.arange(5), task_labels=torch.full((5,), task))
    examples, labels, tasks = buffer.get_all_data()
    assert (
        examples.flatten().tolist() == [2, 3, 4, 12, 13, 14]
        and labels.tolist() == [2, 3, 4] * 2
        and tasks.tolist() == [0] * 3 + [1] * 3
    )
    again = RingBuffer(6, 2)
    again.load_state(buffer.state())
    assert torch.equal(again.get_all_data()[0], examples) and len(again) == 6 and again.is_full()
    with pytest.raises(UserError, match="raise it"):
        RingBuffer(1, 2)


def test_cutmix_shares_are_the_areas():
    from utils.augmentations import cutmix_data

    x = torch.arange(4.0)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    for _ in range(20):
        mixed, a, b, share = cutmix_data(x, torch.arange(4), cutmix_prob=1.0)
        for image, own, other in zip(mixed, a, b, strict=True):
            if own != other:
                assert float((image == own).float().mean()) == pytest.approx(share)
    assert cutmix_data(x, torch.arange(4), cutmix_prob=0.0)[3] == 1.0


def test_batched_transforms_and_views():
    from utils.augmentations import RepeatedTransform, apply_transform, random_crop, random_flip
    from utils.autoaugment import Cutout
    from utils.kornia_utils import CustomKorniaRandAugment, KorniaMultiAug, to_kornia_transform

    x = torch.rand(5, 3, 8, 8)
    steps = [T.RandomHorizontalFlip(1.0), T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]
    want = (x.flip(-1) - 0.5) / 0.5
    assert torch.allclose(to_kornia_transform(steps)(x), want, atol=1e-6)
    assert torch.allclose(apply_transform(x, to_kornia_transform(T.Compose(steps))), want, atol=1e-6)
    assert torch.allclose(KorniaMultiAug(T.Compose(steps), 2)(x), want.repeat(2, 1, 1, 1), atol=1e-6)
    assert RepeatedTransform([to_kornia_transform(steps)] * 3)(x).shape == (3, 5, 3, 8, 8)
    assert random_crop(x, 2).shape == random_flip(x).shape == CustomKorniaRandAugment()(x).shape == x.shape
    holes = (Cutout(1, 4)(torch.ones(50, 1, 8, 8)) == 0).flatten(1).sum(1)
    assert int(holes.max()) <= 16 and int(holes.min()) >= 4


def test_denormalize_and_paths():
    from datasets.transforms.denormalization import DeNormalize
    from utils import smart_joint, to_parsable_obj

    mean, std, x = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), torch.rand(2, 3, 4, 4)
    assert torch.allclose(DeNormalize(mean, std)(T.Normalize(mean, std)(x)), x, atol=1e-6)
    assert smart_joint("a", "/b", "c") == "a/b/c"
    assert to_parsable_obj({"a": torch.ones(2), 1: Namespace(b=(1, None))}) == {"a": [1.0, 1.0], "1": {"b": [1, None]}}


def test_seeded_loaders_and_progress(capsys):
    from utils.status import progress_bar

    from utils.conf import create_seeded_dataloader

    loaders = [
        create_seeded_dataloader(Namespace(seed=3, num_workers=0), range(20), batch_size=4, shuffle=True)
        for _ in range(2)
    ]
    orders = [torch.cat(list(loader)).tolist() for loader in loaders]
    assert orders[0] == orders[1] != list(range(20))
    progress_bar(4, 5, 1, 0, 0.25)
    assert "5/5" in capsys.readouterr().err


def test_flags_of_the_migration_page():
    """The table of the page matches the parser: flags listed as the same exist, flags listed as refused are refused."""
    text = (ROOT / "docs" / "migration.md").read_text()
    rows = re.findall(r"^\| `--(\w+)` \| (same|refused|differs|ours)\b", text, re.M)
    known = {o.lstrip("-").replace("-", "_") for a in cli.new_parser()._actions for o in a.option_strings}
    told = {name: what for name, what in rows}
    assert len(told) == len(rows)
    for name, what in told.items():
        assert (name in flags.REFUSED) == (what == "refused") and (name in known) == (what != "refused"), name
    assert {n for n in known if len(n) > 1} | set(flags.REFUSED) == set(told), (
        "a flag is missing in the table, or too many"
    )
    parser = ArgumentParser()
    flags.add_rehearsal_args(parser)
    assert "`--buffer_size`" not in [row[0] for row in rows]


def test_methods_of_the_migration_page():
    text = (ROOT / "docs" / "migration.md").read_text()
    rows = [line.split("|")[1:3] for line in text.partition("## Mammoth's methods")[2].partition("## ")[0].splitlines()]
    rows = {row[0].strip(): re.findall(r"[a-z][\w-]*", row[1]) for row in rows if len(row) == 2}
    known = set(registry.names("model"))
    there = {name for kind, names in rows.items() if kind.startswith("with") for name in names}
    assert len(rows["here"]) + len(there) + 2 == 70  # joint_gcl and tak are here under another name
    assert {registry.canonical(name) for name in rows["here"]} <= known
    assert not {registry.canonical(name) for name in there} & known, "it is here: move its name to the first row"
