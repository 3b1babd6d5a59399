"""Features of frozen teachers for a task: computed at its start, dropped at its end, kept in checkpoints between."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Teachers:
    """Unit features and weights; M teachers, n classes of the task, D dimensions. All None between tasks."""

    texts: Tensor | None = None  # (M, n, D) class names
    visuals: Tensor | None = None  # (M, n, D) class means of images; 0 for a class without images
    known: Tensor | None = None  # indices of the classes that have images
    class_weights: Tensor | None = None  # (M, n) shares, mean over the images of a class
    gated_class_weights: Tensor | None = None  # (M, n) the same of the gated shares
    aligned_texts: Tensor | None = None  # (n, D) blended over teachers
    aligned_visuals: Tensor | None = None  # (n, D)
    moving: Tensor | None = None  # (n, D) prototypes that follow the student's images
    taught: Tensor | None = None  # (M, N, D) every image of the task
    bank: Tensor | None = None  # (M, P, D) names of past tasks
    pictures: Tensor | None = None  # (M, N, D) reference images
    sentences: Tensor | None = None  # (M, K, D) reference texts

    def state(self) -> dict:
        return dict(vars(self))

    def load_state(self, state: dict) -> None:
        vars(self).update(state)
