"""Two views of replayed images in a contrastive loss on a second network, hardest triplets on the first."""

import torch
import torch.nn.functional as F

from backbone import get_backbone
from datasets import get_dataset
from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.augmentations import RepeatedTransform, apply_transform
from utils.buffer import Buffer
from utils.kornia_utils import to_kornia_transform
from utils.mixup import mixup
from utils.simclrloss import SupConLoss
from utils.spkdloss import SPKDLoss
from utils.triplet import batch_hard_triplet_loss, negative_only_triplet_loss


class DropContrast(ContinualModel):
    NAME = 'drop_contrast'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument('--simclr_temp', type=float, default=0.5)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, self.device)
        ds = get_dataset(args)
        self.views = RepeatedTransform([to_kornia_transform(ds.get_transform().transforms[-1].transforms)] * 2)
        self.denorm = ds.get_denormalization_transform()
        self.second = get_backbone(args).to(self.device)
        self.second_opt = torch.optim.SGD(self.second.parameters(), lr=self.args.lr)
        self.supcon = SupConLoss(temperature=self.args.simclr_temp, base_temperature=self.args.simclr_temp, reduction='sum')
        self.spkd = SPKDLoss('batchmean')
        assert len(self.denorm.mean) == 3 and len(self.denorm.std) == 3

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        out, feats = self.net(inputs, returnt='both')
        loss = self.loss(out, labels)
        loss = loss + batch_hard_triplet_loss(labels, feats, self.args.batch_size, margin=1, margin_type='hard')
        loss = loss + negative_only_triplet_loss(labels, feats, self.args.batch_size)
        if not self.buffer.is_empty():
            buf_inputs, buf_labels = self.buffer.get_data(self.args.minibatch_size)
            views = apply_transform(buf_inputs, self.views)
            bs = buf_inputs.shape[0]
            second = self.second.features(views.flatten(0, 1))
            con = F.normalize(second.view(2, bs, -1), dim=-1).transpose(0, 1)
            loss_con = self.supcon(con, labels=buf_labels) + self.spkd(second[:bs].detach(), second[bs:])
            self.second_opt.zero_grad()
            loss_con.backward()
            self.second_opt.step()
            n = min(bs, inputs.shape[0])
            targets = [F.one_hot(t[:n], self.num_classes).float() for t in (labels, buf_labels)]
            mixed, soft = mixup([(inputs[:n], targets[0]), (views[0, :n], targets[1])], self.args.simclr_temp)
            loss = loss - (F.log_softmax(self.net(mixed), 1) * soft).sum(1).mean()
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.item()
