"""Scores of a run: pure functions of one matrix R, with R[t, j] the percent on test set j after training task t.

T = number of rows = tasks trained; t and j count from 0; NaN = not measured. All means are unweighted over tasks, as in
Mammoth, so a small test set counts as much as a large one; those whose key ends in `_images` count images. A metric
that needs a cell which is missing (NaN, or a row or column that is not there) is NaN, never a mean over the rest.
"""

import numpy as np
from numpy.typing import ArrayLike

NAN = float("nan")
CROSS_DOMAIN = (
    "mtil",
    "odcl",
    "xtail",
    "mixed_mtil",
    "mixed_odcl",
    "mixed_xtail",
)  # matrices for which Transfer, Avg and Last are computed


def _matrix(R: ArrayLike) -> np.ndarray:
    R = np.asarray(R, dtype=np.float64)
    if R.ndim != 2:
        raise ValueError(f"a score matrix has two dimensions, rows = trained tasks; got shape {R.shape}")
    return R


def _mean(values: ArrayLike) -> float:
    """Mean that is NaN for no values, and for any NaN among them."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()) if values.size else NAN


def last(R: ArrayLike) -> float:
    """Final average accuracy (FAA): mean over j <= T-1 of R[T-1, j], the tasks trained so far.

    NaN if a cell of that part of the last row is missing; other rows do not matter.

    Tasks: all trained so far, after the last one
    Paper: Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840 (ACC); FAA is the name in Mammoth
    """
    R = _matrix(R)
    T, columns = R.shape
    return _mean(R[-1, :T]) if 0 < T <= columns else NAN


def average_incremental(R: ArrayLike) -> float:
    """Cumulative average accuracy (CAA): mean over t <= T-1 of [mean over j <= t of R[t, j]].

    NaN if any cell on or below the diagonal is missing; cells above it do not matter.

    Tasks: all trained so far, after each of them
    Paper: Rebuffi et al., CVPR 2017, arXiv 1611.07725 (average incremental accuracy)
    """
    R = _matrix(R)
    T, columns = R.shape
    return _mean([_mean(R[t, : t + 1]) for t in range(T)]) if T <= columns else NAN


def _mean_over_images(row: np.ndarray, counts: np.ndarray) -> float:
    """sum_j n_j R_j / sum_j n_j; NaN for no images, and for any NaN."""
    total = float(counts.sum())
    return float((row * counts).sum() / total) if total > 0 else NAN


def last_images(R: ArrayLike, counts: ArrayLike) -> float:
    """Final accuracy over images: sum over j <= T-1 of n_j R[T-1, j] / sum of n_j, n_j images in test set j.

    What most class-incremental papers report; equal to `last` where all test sets are of one size.

    Tasks: all trained so far, after the last one
    Paper: Rebuffi et al., CVPR 2017, arXiv 1611.07725 (accuracy on the classes learned so far)
    """
    R, n = _matrix(R), np.asarray(counts, dtype=np.float64)
    T, columns = R.shape
    return _mean_over_images(R[-1, :T], n[:T]) if 0 < T <= min(columns, len(n)) else NAN


def average_incremental_images(R: ArrayLike, counts: ArrayLike) -> float:
    """Mean over t <= T-1 of [sum over j <= t of n_j R[t, j] / sum of n_j], n_j images in test set j.

    NaN if any cell on or below the diagonal is missing; cells above it do not matter.

    Tasks: all trained so far, after each of them
    Paper: Rebuffi et al., CVPR 2017, arXiv 1611.07725 (average incremental accuracy)
    """
    R, n = _matrix(R), np.asarray(counts, dtype=np.float64)
    T, columns = R.shape
    if T > min(columns, len(n)):
        return NAN
    return _mean([_mean_over_images(R[t, : t + 1], n[: t + 1]) for t in range(T)])


def forgetting(R: ArrayLike) -> float:
    """Mean over j < T-1 of [max over j <= t <= T-1 of R[t, j]] - R[T-1, j].

    The maximum includes the last row (as in Mammoth), so it is never negative. NaN for one task, and if any cell
    R[t >= j, j < T-1] is missing; rows before task j was trained (zero-shot scores) do not count.

    Tasks: all but the last, after the last
    Paper: Chaudhry et al., ECCV 2018, arXiv 1801.10112, whose maximum leaves the last row out
    """
    R = _matrix(R)
    T, columns = R.shape
    return _mean([R[j:, j].max() - R[-1, j] for j in range(T - 1)]) if T <= columns else NAN


def bwt(R: ArrayLike) -> float:
    """Backward transfer: mean over j < T-1 of R[T-1, j] - R[j, j]. NaN for one task or a missing cell of these.

    Tasks: all but the last, after the last
    Paper: Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840
    """
    R = _matrix(R)
    T, columns = R.shape
    return _mean([R[-1, j] - R[j, j] for j in range(T - 1)]) if T <= columns else NAN


def fwt(R: ArrayLike, random_row: ArrayLike) -> float:
    """Forward transfer: mean over 1 <= j <= T-1 of R[j-1, j] - random_row[j].

    `random_row` holds the scores of the untrained model, one per test set. NaN for one task or a missing cell.

    Tasks: all but the first, right before each is trained
    Paper: Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840
    """
    R, random_row = _matrix(R), np.asarray(random_row, dtype=np.float64)
    T, columns = R.shape
    if T > columns or len(random_row) < T:
        return NAN
    return _mean([R[j - 1, j] - random_row[j] for j in range(1, T)])


def _before_last_task(R: ArrayLike, future: bool) -> float:
    """Mean over t < N-1 of the mean of R[t] over j > t (future) or j <= t (seen); N = number of columns."""
    R = _matrix(R)
    rows, N = R.shape
    if rows < N - 1:
        return NAN
    return _mean([_mean(R[t, t + 1 :] if future else R[t, : t + 1]) for t in range(N - 1)])


def ci_transfer(R: ArrayLike) -> float:
    """Class-incremental transfer: mean over t < N-1 of [mean over j > t of R[t, j]], N = number of columns.

    The mean over moments t of how well the tasks still to come are recognized, all names competing. Alone it rewards
    forgetting (seen names that attract nothing): read it with `seen_all`. NaN for one task or any missing R[t, j > t].

    Tasks: those not trained yet, after each but the last
    Paper: Frascaroli et al., BMVC 2024, arXiv 2407.15793
    """
    return _before_last_task(R, future=True)


def seen_all(R: ArrayLike) -> float:
    """Mean over t < N-1 of [mean over j <= t of R[t, j]]: seen images among all names, at the moments of CI-Transfer.

    NaN for one task or a missing cell of these; the last row (no future left) does not matter.

    Tasks: those trained so far, after each but the last
    Paper: ours, beside CI-Transfer
    """
    return _before_last_task(R, future=False)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are 0, NaN if either is NaN.

    Tasks: those of the two scores
    Paper: the two scores together as in Xian et al., CVPR 2017, arXiv 1703.04394
    """
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


def mtil_transfer(R: ArrayLike) -> float:
    """MTIL Transfer: mean over columns 1 <= j <= N-1 of [mean over t < j of R[t, j]], R being N x N.

    Each column is a dataset with its own names; the first column never counts. NaN for one task or any missing
    R[t < j, j]. Unlike `ci_transfer` the outer mean is over datasets, not over moments.

    Tasks: all but the first, before each is trained
    Paper: Zheng et al., ICCV 2023, arXiv 2303.06628; among all names (X-TAIL) Xu et al., NeurIPS 2024,
        arXiv 2406.18868
    """
    R = _matrix(R)
    rows, N = R.shape
    return _mean([_mean(R[:j, j]) for j in range(1, N)]) if rows >= N - 1 else NAN


def mtil_avg(R: ArrayLike) -> float:
    """MTIL Avg: mean over j of [mean over t of R[t, j]] = mean of all N x N cells. NaN if one is missing.

    Tasks: all, after each of them
    Paper: Zheng et al., ICCV 2023, arXiv 2303.06628; among all names (X-TAIL) Xu et al., NeurIPS 2024,
        arXiv 2406.18868
    """
    R = _matrix(R)
    return _mean(R) if R.shape[0] == R.shape[1] else NAN


def mtil_last(R: ArrayLike) -> float:
    """MTIL Last: mean over all N columns of R[N-1, j]. NaN if a cell of row N-1 is missing.

    Tasks: all, after the last one
    Paper: Zheng et al., ICCV 2023, arXiv 2303.06628; among all names (X-TAIL) Xu et al., NeurIPS 2024,
        arXiv 2406.18868
    """
    R = _matrix(R)
    return _mean(R[-1]) if R.shape[0] == R.shape[1] else NAN


def largest_gap(R: ArrayLike, other: ArrayLike) -> float:
    """Largest |R[t, j] - other[t, j]| over the cells that both have measured; NaN where they share none.

    Tasks: all cells that were measured
    Paper: ours
    """
    gaps = np.abs(_matrix(R) - _matrix(other))
    return float(np.nanmax(gaps)) if not np.isnan(gaps).all() else NAN


def ece(confidences: ArrayLike, correct: ArrayLike, n_bins: int = 15) -> float:
    """Expected calibration error, percent: 100 * sum over bins b of n_b / n * |mean correct_b - mean confidence_b|.

    Bins are ((b) / n_bins, (b + 1) / n_bins], equally wide; confidence 0 falls in the first. NaN for no samples or a
    NaN confidence.

    Tasks: samples of all trained so far, after the last one
    Paper: Guo et al., ICML 2017, arXiv 1706.04599
    """
    p, hit = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.shape != hit.shape or p.ndim != 1:
        raise ValueError(f"ece needs two vectors of equal length; got shapes {p.shape} and {hit.shape}")
    if not p.size or np.isnan(p).any():
        return NAN
    if p.min() < 0 or p.max() > 1:
        raise ValueError("ece needs confidences from 0 to 1")
    index = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], p, side="left")
    return float(100 * np.abs(np.bincount(index, hit - p, n_bins)).sum() / p.size)


def per_class_accuracy(pred: ArrayLike, target: ArrayLike, n_classes: int) -> np.ndarray:
    """Percent of the samples of each class 0 .. n_classes-1 that got their own label: (n_classes,).

    NaN for a class without samples. Predictions may lie outside the range, targets may not.

    Tasks: classes of all trained so far, after each
    Paper: none
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if target.size and not (0 <= target.min() and target.max() < n_classes):
        raise ValueError(f"targets must lie in [0, {n_classes}); got {target.min()} to {target.max()}")
    count = np.bincount(target, minlength=n_classes)
    hits = np.bincount(target[pred == target], minlength=n_classes)
    return np.where(count > 0, 100.0 * hits / np.maximum(count, 1), NAN)


def confusion(pred: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Rows (class, predicted class, samples) of the pairs that occur, in order: (n, 3).

    A prediction below 0, of no class at all, is left out.

    Tasks: classes of all trained so far, after the last
    Paper: none
    """
    pairs = np.stack([np.asarray(target), np.asarray(pred)], 1).astype(int)
    pairs, count = np.unique(pairs[pairs[:, 1] >= 0], axis=0, return_counts=True)
    return np.concatenate([pairs, count[:, None]], 1)


def summary(
    matrices: dict[str, ArrayLike],
    random_rows: dict[str, ArrayLike] | None = None,
    counts: ArrayLike | None = None,
) -> dict[str, float]:
    """The flat scores of a run; entries that come out as NaN are left out.

    Each matrix is R[t, j] of one way to score, all optional:
    `class_il`, `task_il`, `exact_match`, `vqa` (cells on and below the diagonal) -> `<name>_last`, `_avg`,
    `_forgetting`, `_bwt`, and `_fwt` if the cells R[j-1, j] and the untrained model's scores `random_rows[name]` are
    there;
    `future` (all names compete) -> `ci_transfer`; `seen_all` (same, cells up to the diagonal) -> `seen_all`;
    `future_unseen` (unseen names only, cells above the diagonal) -> `future_unseen`; `ci_harmonic` is the harmonic
    mean of `ci_transfer` and `seen_all`; `mtil` (all cells, own names per dataset), `odcl` (the names of the datasets
    seen, of an unseen one its own) and `xtail` (all cells, the names of all datasets) -> `<name>_transfer`, `_avg` and
    `_last`, and so `mixed_mtil`, `mixed_odcl` and `mixed_xtail`, measured on batches that mix the datasets.
    With `counts`, the images in each test set, also `class_il_last_images` and `_avg_images`.
    """
    known = {"class_il", "task_il", "exact_match", "vqa", "future", "seen_all", "future_unseen", *CROSS_DOMAIN}
    if unknown := sorted(set(matrices) - known):
        raise ValueError(f"no summary for the matrices {unknown}; known: {sorted(known)}")
    scores: dict[str, float] = {}
    for name in ("class_il", "task_il", "exact_match", "vqa"):
        if name in matrices:
            R = matrices[name]
            scores |= {f"{name}_last": last(R), f"{name}_avg": average_incremental(R)}
            scores |= {f"{name}_forgetting": forgetting(R), f"{name}_bwt": bwt(R)}
            if counts is not None and name == "class_il":
                scores[f"{name}_last_images"] = last_images(R, counts)
                scores[f"{name}_avg_images"] = average_incremental_images(R, counts)
            if random_rows and name in random_rows:
                scores[f"{name}_fwt"] = fwt(R, random_rows[name])
    for name, matrix, metric in (
        ("ci_transfer", "future", ci_transfer),
        ("seen_all", "seen_all", seen_all),
        ("future_unseen", "future_unseen", ci_transfer),
        *((f"{way}_transfer", way, mtil_transfer) for way in CROSS_DOMAIN),
        *((f"{way}_avg", way, mtil_avg) for way in CROSS_DOMAIN),
        *((f"{way}_last", way, mtil_last) for way in CROSS_DOMAIN),
    ):
        if matrix in matrices:
            scores[name] = metric(matrices[matrix])
    scores["ci_harmonic"] = harmonic_mean(scores.get("ci_transfer", NAN), scores.get("seen_all", NAN))
    return {name: value for name, value in scores.items() if not np.isnan(value)}
