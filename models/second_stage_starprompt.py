"""STAR-Prompt, second stage alone: value prompts of the class whose hand-written name is nearest in CLIP.

Menabue et al., ECCV 2024, arXiv 2403.06870; models/utils/value_prompts.py has the formulas. The keys are CLIP's
features of the classes' names in the dataset's sentences (static keys); `starprompt` learns them in its first stage.

Choices: images are prepared as CLIP expects and not augmented, so that CLIP sees each of them once; --vit names the
transformer that is prompted (published: ViT-B/16 of ImageNet-21k), by default it is CLIP's own image tower.

No table has a row of it; on the picture world:
    python main.py --model second-stage-starprompt --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

from models.utils.value_prompts import ValuePrompts, add_second_stage_args
from models.utils.vlm_model import VLMModel, add_vlm_args

TOY = {"num_samples_gr_second_stage": 8, "num_epochs_gr_second_stage": 1, "clip_grad": 0.5, "lr": 0.05}


class SecondStageStarPrompt(ValuePrompts, VLMModel):
    NAME = "second-stage-starprompt"
    COMPATIBILITY = ["class-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = {"optimizer": ""}
    TOY_ARGS = TOY | {"n_epochs": 1}
    NOT_TRIED = ValuePrompts.SECOND_NOT_TRIED

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=0.001, n_epochs=20, batch_size=128)
        add_second_stage_args(add_vlm_args(parser))
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("written", self.text_features(self.dataset.get_class_names()), persistent=False)
        self.make_second_stage()

    def class_keys(self):
        return self.written[: self.n_seen_classes]

    def end_task(self, dataset):
        self.second_stage(dataset, self.args.lr, 1 if self.args.debug_mode else self.args.n_epochs)

    def forward(self, x):
        return self.second_answers(x)
