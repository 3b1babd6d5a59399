"""CLIP with both towers fine-tuned on each task in turn: the lower bound of cross-domain methods.

The "continual fine-tuning" row of Zheng et al., ICCV 2023, arXiv 2303.06628. Choices: see models/utils/clip_tuning.py;
--avg_freq 100 adds the mean of weights within each task.

Row of docs/mulki.md, by scripts/claims/mulki.yaml, one seed:
    python main.py --model finetune-clip --fitting_mode iters --n_iters 50 --batch_size 32 --lr 0.0002 --augment 0 \
        --dataset mtil-tiny --mtil_order I --eval_future 1 --seed 1992 --picture_seed 1992
"""

from models.utils.clip_tuning import ClipTuning, add_averaging_args, add_tuning_args


class FinetuneClip(ClipTuning):
    NAME = "finetune-clip"
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1, "avg_freq": 3}

    @staticmethod
    def get_parser(parser):
        return add_averaging_args(add_tuning_args(parser), every=0)
