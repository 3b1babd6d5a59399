"""Small networks and a small stream for the classics, so that steps can be computed by hand."""

import torch
import torch.nn.functional as F

from tests.toys import Linear, ToyStream, toy_args

FLAGS = {
    "whole_memory": True,
    "gamma": 0.5,
    "mammoth_compat": False,
    "c": 0.5,
    "xi": 1.0,
    "clamp_omega": True,
    "e_lambda": 2.0,
    "fisher": "empirical",
    "softmax_temp": 2.0,
    "warmup_epochs": 1,
    "old_outputs": "recorded",
    "lamda_base": 5.0,
    "lamda_mr": 1.0,
    "k_mr": 2,
    "mr_margin": 0.5,
    "fitting_epochs": 3,
    "lr_finetune": 0.01,
    "imprint_weights": True,
    "optim_mom": 0.0,
    "optim_wd": 0.0,
    "bic_epochs": 250,
    "bic_lr": 0.01,
    "temp": 2.0,
    "valset_split": 0.1,
    "distill_after_bic": True,
    "buffer_size": 18,
}


class Both(Linear):
    """The linear net, which also gives logits and features together."""

    def forward(self, x, returnt="out"):
        features = super().forward(x, "features")
        return {"features": features, "both": (self.classifier(features), features)}.get(
            returnt, self.classifier(features)
        )


def build(method, norm=False, stream=ToyStream, **changes):
    args = toy_args(**{**FLAGS, **changes})
    torch.manual_seed(0)
    stream = stream(args)
    model = method(Both(6, stream.N_CLASSES, norm), F.cross_entropy, args, None, stream)
    return model


def begin(model):
    model.dataset.get_data_loaders()
    model.net.train()
    model.meta_begin_task(model.dataset)


def train(model, steps=None):
    """A task's pass, or its first steps."""
    begin(model)
    for number, data in enumerate(model.dataset.train_loader.epoch(0)):
        if number == steps:
            return
        names = model.dataset.train_loader.dataset.extra_return_fields
        model.meta_observe(*data[:3], epoch=0, **dict(zip(names, data[3:], strict=True)))
    model.meta_end_task(model.dataset)


def some(model, seed=0, n=5):
    """Images and labels of the newest classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(max(model.n_past_classes, 0), model.n_seen_classes, (n,), generator=draw)
    return torch.rand(n, 1, 2, 3, generator=draw), labels
