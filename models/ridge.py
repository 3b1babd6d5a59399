"""Ridge regression on frozen CLIP features: exactly the joint solution, whatever the order of tasks.

The primal form of RAIL (Xu et al., NeurIPS 2024, arXiv 2406.18868) without its random layer:
G = sum H^T H, Q = sum H^T Y, W = (G + lambda I)^-1 Q, with H the unit features and Y one-hot.

Choices: --ridge is lambda; there is no intercept; moments are kept in float64.

No table has a row of it; on the picture world:
    python main.py --model ridge --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import normalize, one_hot

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, positive


class Ridge(VLMModel):
    NAME = "ridge"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    FUSES_TEXT = True

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--ridge", type=positive, default=0.1, help="ridge penalty lambda")
        return add_vlm_args(parser, names=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        dim = self.feature_dim
        self.gram = torch.zeros(dim, dim, dtype=torch.float64)  # G
        self.cross = torch.zeros(dim, self.num_classes, dtype=torch.float64)  # Q
        self.weights = None  # W (D, C)

    def end_task(self, dataset):
        features, labels = (t.cpu() for t in self.image_features(dataset.train_loader.dataset))
        features, labels = normalize(features, dim=1).double()[labels >= 0], labels[labels >= 0]
        self.gram += features.T @ features
        self.cross += features.T @ one_hot(labels, self.num_classes).double()
        damped = self.gram + self.args.ridge * torch.eye(len(self.gram), dtype=torch.float64)
        self.weights = (
            torch.cholesky_solve(self.cross, torch.linalg.cholesky(damped)).float().contiguous().to(self.device)
        )

    def forward(self, x):
        return (normalize(self.encode(x), dim=1) @ self.weights)[:, : self.n_seen_classes]
