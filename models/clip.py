"""Zero-shot CLIP: nothing is trained, an image gets the class name whose text feature is nearest.

Radford et al., ICML 2021, arXiv 2103.00020; as a continual baseline Thengane et al. 2022, arXiv 2210.03114.
Choices: one template by default; --use_templates 1 averages the unit features of all of the dataset's templates.

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model clip --eval_future 1 --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, boolean


class Clip(VLMModel):
    NAME = "clip"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--use_templates", type=boolean, default=False, help="average all templates of the dataset")
        return add_vlm_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        templates = self.class_templates(every=args.use_templates)
        self.keys = self.text_features(self.dataset.get_class_names(), templates)  # (C, D)

    def forward(self, x):
        return self.logits(self.encode(x), self.keys[: self.n_seen_classes])

    def future_forward(self, x):
        return self.logits(self.encode(x), self.keys)
