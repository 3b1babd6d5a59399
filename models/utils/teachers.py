"""What frozen teachers know of a task: made at its start, forgotten at its end, kept in a checkpoint between."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Teachers:
    """Unit features and weights; M teachers, n classes of the task, D dimensions. All None between tasks."""

    texts: Tensor | None = None  # (M, n, D) class names
    visuals: Tensor | None = None  # (M, n, D) class means of images; 0 of a class without any
    known: Tensor | None = None  # numbers of the classes that have images
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
