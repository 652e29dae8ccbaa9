"""Continual-learning metrics of an accuracy matrix ``A[t, i]``: accuracy on task ``i`` after session ``t``.

What reports, terminals and tables for other programs print of a metric or a cost is said here, once.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


class MetricsError(ValueError):
    """An accuracy matrix that has no metrics; the message says why."""


@dataclass(frozen=True)
class ContinualMetrics:
    """Metrics in the unit of the matrix (percent in, percent out). T is the number of tasks."""

    transfer: float
    """Mean over tasks ``i = 2..T`` of the mean of ``A[t, i]`` over sessions ``t < i``: accuracy on tasks not learned
    yet (ZSCL, ICCV 2023). NaN for T = 1."""
    average: float
    """Mean over all tasks and sessions of ``A[t, i]`` (ZSCL)."""
    last: float
    """Mean over tasks of ``A[T, i]``, accuracy after the last session (ZSCL); "ACC" in other papers."""
    backward_transfer: float
    """BWT: mean over ``i < T`` of ``A[T, i] - A[i, i]`` (GEM, NeurIPS 2017); negative is forgetting. NaN for T = 1."""
    forgetting: float
    """Mean over ``i < T`` of ``max_t A[t, i] - A[T, i]`` over all sessions ``t``, those before task ``i`` was learned
    and the last one among them (Chaudhry et al., ECCV 2018), so that it is at least 0. NaN for T = 1."""
    forgetting_since_learned: float
    """The other common one: the maximum over ``i <= t < T``, from the task's own session to the last but one; negative
    where the last session is the best. NaN for T = 1."""


@dataclass(frozen=True)
class Column:
    """A column of tables: a metric or a cost."""

    heading: str
    digits: int
    """Decimals."""
    unit: str = "percent"
    """``percent``, ``seconds``, or nothing for a count."""
    higher_is_better: bool = True
    """Costs are never compared."""
    meaning: str = ""
    """A line for readers."""


METRICS = {
    "transfer": Column("Transfer", 1, meaning="mean accuracy on tasks that were not learned yet"),
    "average": Column("Average", 1, meaning="mean accuracy over all tasks and all sessions"),
    "last": Column("Last", 1, meaning="mean accuracy over all tasks after the last session"),
    "backward_transfer": Column(
        "BWT", 2, meaning="accuracy after the last session minus that right after learning, mean over tasks"
    ),
    "forgetting": Column(
        "Forgetting", 2, higher_is_better=False,
        meaning="best accuracy ever minus that after the last session, mean over tasks; low is good",
    ),
}  # fmt: skip
"""By field of `ContinualMetrics`, in the order of columns."""
MORE = {
    "forgetting_since_learned": Column(
        "Forgetting since learned", 2, higher_is_better=False,
        meaning="best accuracy from learning to the last session but one minus that after the last, mean over tasks",
    ),
}  # fmt: skip
"""Other fields of `ContinualMetrics`, which results record and tables leave out."""
HEADLINE = ("transfer", "average", "last")
"""Metrics of ZSCL and ConDU, which pictures and ablations show."""
COMPARED = (*HEADLINE, "backward_transfer")
"""Metrics in which methods are compared, with PAM's."""
COSTS = {
    "seconds": Column(
        "Seconds",
        1,
        "seconds",
        meaning="what training the method's experts, its merges and its measurements took, added up: whatever ran side "
        "by side, and whoever did it first",
    ),
    "experts_trained": Column("Experts trained", 0, ""),
    "experts_reused": Column("Experts reused", 0, ""),
    "measurements": Column("Measurements", 0, ""),
    "measurements_reused": Column("Measurements reused", 0, ""),
}
"""What a method or a trial cost, by key of its record."""
STORAGE = {
    "bits": Column(
        "Bits",
        2,
        "",
        meaning="bits on disk that serve the tasks in the end, a task and parameter that its training may change (of "
        "adapters: of the matrices that they adapt, so that equal bits are fewer bytes)",
    ),
}
"""What a method keeps, by key of its results."""
SHARPEST, FLATTEST = 1e-4, 1e4
"""Temperatures that are tried where one is fitted; one at the edge was not found."""


def continual_metrics(accuracy: ArrayLike) -> ContinualMetrics:
    """Summarise an accuracy matrix.

    Args:
        accuracy: ``[T, T]`` numbers in any unit. Rows are sessions in training order, columns tasks in the same order.

    Returns:
        The metrics; those that compare tasks are NaN where there is one task alone.

    Raises:
        MetricsError: The matrix is empty, not square, or holds something that is not a finite number.
    """
    try:
        A = np.asarray(accuracy, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MetricsError(f"the accuracy matrix is ragged or not numeric: {error}") from error
    if A.size == 0:
        raise MetricsError("the accuracy matrix is empty")
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise MetricsError(f"the accuracy matrix has shape {A.shape}, not (T, T): one row a session, one column a task")
    if not np.isfinite(A).all():
        t, i = np.argwhere(~np.isfinite(A))[0]
        raise MetricsError(f"accuracy[{t}][{i}] is {A[t, i]}, not a finite number")
    tasks = len(A)
    if tasks == 1:
        return ContinualMetrics(math.nan, float(A[0, 0]), float(A[0, 0]), *[math.nan] * 3)
    earlier = A[:, :-1]
    return ContinualMetrics(
        transfer=float(np.mean([A[:i, i].mean() for i in range(1, tasks)])),
        average=float(A.mean()),
        last=float(A[-1].mean()),
        backward_transfer=float((A[-1, :-1] - np.diagonal(A)[:-1]).mean()),
        forgetting=float((earlier.max(axis=0) - A[-1, :-1]).mean()),
        forgetting_since_learned=float(np.mean([A[i:-1, i].max() - A[-1, i] for i in range(tasks - 1)])),
    )
