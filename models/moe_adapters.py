"""MoE-Adapters: a frozen CLIP whose blocks have adapters parallel to the MLP, mixed by a router for each image.

Yu et al., CVPR 2024, arXiv 2403.11549. The mixture is that of `backbone/experts.py`, in both towers.

    class-il   one router, all experts trained on every task
    mtil       a router per task; after a task the top_k experts of a block that were chosen most are frozen. At test
               an autoencoder per task reads the frozen feature; that with the least error names the router, and above
               --unknown_above there are no experts: zero-shot CLIP                                 -> `route_images`
    loss       cross-entropy over the task's names (--label_space)

Choices: the router's noise is drawn in training only (in the released class-incremental code it stays on at test). An
image is routed by its class token. A text is routed in the paper by its start token, which under the causal mask is the
same for all texts: here by a vector of logits that all texts share. The unused balance loss is left out. In the mtil
form the autoencoder reads CLIP's unit image feature in place of AlexNet's maps, each image has its own router (the
released code takes one per test batch), the keys are per router;
--unknown_above is a share of the feature's squared length, ours.

No table has a row of it; on the picture world:
    python main.py --model moe-adapters --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from backbone.clip import is_vit
from backbone.experts import add_experts
from models.utils.clip_tuning import add_tuning_args
from models.utils.domain_coders import DomainCoders
from models.utils.routed_tuning import RoutedTuning
from utils.errors import UserError
from utils.flags import non_negative, positive, positive_int


class MoeAdapters(RoutedTuning):
    NAME = "moe-adapters"
    ONE_RANK = (
        "draws noise inside of its network, and on two ranks its text experts differ by 8e-5 from those of one, "
        "for a reason that is not known"
    )
    TOY_ARGS = {"lr": 0.01, "form": "mtil", "experts_num": 3, "n_epochs": 1} | {
        "ddas_steps": 10,
        "ddas_lr": 0.01,
        "unknown_above": 0.13,
    }

    @staticmethod
    def get_parser(parser):
        add_tuning_args(parser, label_smoothing=0.0).set_defaults(lr=1e-3)
        add = parser.add_argument
        add("--form", choices=["class-il", "mtil"], default="class-il", help="one router, or a router for each task")
        add("--experts_num", type=positive_int, default=2, help="adapters per block (the paper's mtil form: 22)")
        add("--top_k", type=positive_int, default=2, help="adapters that an image passes through")
        add("--ffn_num", type=positive_int, default=64, help="hidden width of an adapter")
        add("--ddas_code", type=positive_int, default=100, help="mtil: width of an autoencoder's code")
        add("--ddas_steps", type=positive_int, default=300, help="mtil: steps of an autoencoder")
        add("--ddas_lr", type=positive, default=1e-3, help="mtil: learning rate of an autoencoder (Adam)")
        add("--unknown_above", type=non_negative, default=0.25, help="mtil: error above which an image is unknown")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not is_vit(self.net.clip):
            raise UserError(f"moe-adapters need transformer blocks; {self.net.name} has a ResNet: choose a ViT CLIP")
        self.per_task = args.form == "mtil"
        self.net.requires_grad_(False)
        options = {"hidden": args.ffn_num, "n": args.experts_num, "top_k": args.top_k}
        options["routers"] = self.n_tasks if self.per_task else 1
        towers = self.net.clip.visual.transformer, self.net.clip.transformer
        self.seers = add_experts(towers[0].resblocks, **options)
        self.readers = add_experts(towers[1].resblocks, on_token=False, **options)
        self.opt = self.get_optimizer()
        self.coders = DomainCoders(self.n_tasks if self.per_task else 0, self.net.embed_dim, args.ddas_code)
        self.coders.to(self.device)

    def route(self, images, texts):
        """The router of all images or of each (B,), and that of the texts; -1: none."""
        for experts in self.seers:
            experts.router = images
        for experts in self.readers:
            experts.router = texts

    def step(self, inputs, labels, **extras):
        task = self.current_task if self.per_task else 0
        self.route(task, task)  # an evaluation in between may have changed it
        return super().step(inputs, labels, **extras)

    def end_task(self, dataset):
        super().end_task(dataset)
        if not self.per_task:
            return
        for experts in (*self.seers, *self.readers):
            experts.freeze_most_used()
        self.opt = self.get_optimizer()
        rows = self.plain_task(dataset)
        self.coders.fit(self.current_task, rows, self.args.ddas_steps, self.args.ddas_lr, self.args.seed)

    # mtil: a route per task, and the last for images of none

    def routes(self):
        return max(1, self.current_task) + 1 if self.per_task else 0

    def route_images(self, pixels):
        router = self.coders.choose(self.plain_rows(pixels), self.routes() - 1, self.args.unknown_above)
        self.route(router, 0)
        return router

    def route_texts(self, route):
        self.route(0, route if route < self.routes() - 1 else -1)

    def switch_off(self):
        self.route(-1, -1)
