"""STAR-Prompt: learned class keys in CLIP select value prompts of a vision transformer; both stages in each task.

Menabue et al., ECCV 2024, arXiv 2403.06870. The first stage is `first-stage-starprompt`, the second is described in
models/utils/value_prompts.py; the keys of the second are those that the first has learned so far.

Choices: --lr, --n_epochs and --batch_size are the first stage's, --second_stage_lr and --second_stage_epochs the second
one's (Adam). Images are prepared as CLIP expects and not augmented. --vit names the transformer that is prompted
(published: ViT-B/16 of ImageNet-21k), by default CLIP's image tower. With --eval_future the first stage's keys score
all names.

No table has a row of it; on the picture world:
    python main.py --model starprompt --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.first_stage_starprompt import FirstStageStarPrompt
from models.second_stage_starprompt import TOY
from models.utils.value_prompts import ValuePrompts, add_second_stage_args
from utils.flags import natural, positive


class StarPrompt(ValuePrompts, FirstStageStarPrompt):
    NAME = "starprompt"
    TOY_ARGS = (
        FirstStageStarPrompt.TOY_ARGS
        | TOY
        | {"clip_backbone": "tiny", "second_stage_epochs": 1, "second_stage_lr": 0.05}
    )
    NOT_TRIED = ValuePrompts.SECOND_NOT_TRIED

    @staticmethod
    def get_parser(parser):
        add = FirstStageStarPrompt.get_parser(parser).add_argument
        add_second_stage_args(parser)
        add("--second_stage_lr", type=positive, default=0.001, help="learning rate of the second stage (Adam)")
        add("--second_stage_epochs", type=natural, default=20, help="epochs of the second stage")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.make_second_stage()

    def class_keys(self):
        return self.keys

    def end_task(self, dataset):
        if not self.work_done.get("values"):
            FirstStageStarPrompt.end_task(self, dataset)
        self.keys = self.seen_keys()
        self.second_stage(
            dataset, self.args.second_stage_lr, 1 if self.args.debug_mode else self.args.second_stage_epochs
        )

    def forward(self, x):
        self.keys = self.seen_keys()
        return self.second_answers(x)

    def future_forward(self, x):
        self.keys = self.seen_keys()
        keys = torch.cat([self.keys, self.written[self.n_seen_classes :]])
        return self.logits(self.encode(x), keys)
