"""Visual question answering as classification over an answer vocabulary, scored by how many annotators agree."""

import torch

from datasets.utils.continual_dataset import ContinualDataset

N_ANNOTATORS = 10


def soft_scores(counts: torch.Tensor) -> torch.Tensor:
    """VQA accuracy (N, A) of each answer from the number n of the ten annotators who gave it (N, A).

    The official form: min(matches / 3, 1) among nine annotators, averaged over the ten ways to leave one out. One of
    the n matching is left out in n of the ten ways, so the score is ((10 - n) min(n/3, 1) + n min((n - 1)/3, 1)) / 10:
    0.3, 0.6, 0.9 and 1 for n = 1, 2, 3 and more.
    """
    n = counts.double()
    kept, left_out = (n / 3).clamp(max=1), ((n - 1) / 3).clamp(0, 1)
    return (((N_ANNOTATORS - n) * kept + n * left_out) / N_ANNOTATORS).float()


class VQADataset(ContinualDataset):
    """Samples are Pairs (picture, question tokens), labels the most frequent answers, and the extra `soft` (N, A) holds
    the credit of every answer. The record names its scores vqa_*; exact_match_last compares with the label alone."""

    VQA = True
    HAS_TEXT = True

    def score(self, outputs: torch.Tensor, labels: torch.Tensor, extras: dict[str, torch.Tensor]) -> torch.Tensor:
        return extras["soft"].gather(1, outputs.argmax(dim=1, keepdim=True)).squeeze(1)
