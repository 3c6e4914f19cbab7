"""The tasks' metrics, by scikit-learn and SciPy."""

import numpy as np
from numpy.typing import NDArray

from fedasym.ops import extras


def score(name: str, predictions: NDArray[np.generic], labels: NDArray[np.generic]) -> float:
    """Compute one metric over all examples.

    Args:
        name: ``accuracy``, ``f1`` (macro average), ``binary_f1`` (of class 1), ``matthews``, ``pearson`` or
            ``spearman``.
        predictions: ``(n,)`` class ids, or scores for ``pearson`` and ``spearman``.
        labels: ``(n,)`` of the same kind.

    Returns:
        The metric as a fraction. A correlation with a constant is undefined; it counts as 0.0, and so does the F1 of
        a class that is neither there nor predicted.

    Raises:
        ValueError: unknown metric.
        ModuleNotFoundError: its library is not installed; the text names the extra.
    """
    if name == "accuracy":
        return float(np.mean(predictions == labels))
    if name in ("f1", "binary_f1"):
        with extras.named():
            from sklearn.metrics import f1_score

        average = "macro" if name == "f1" else "binary"
        return float(f1_score(labels, predictions, average=average, zero_division=0.0))
    if name in ("matthews", "pearson", "spearman"):
        with extras.named():
            from scipy import stats
            from sklearn.metrics import matthews_corrcoef

        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        if name == "matthews":
            return float(matthews_corrcoef(labels, predictions))
        correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
        return float(correlation(predictions, labels).statistic)
    raise ValueError(f"metric {name!r} is unknown; use accuracy, f1, binary_f1, matthews, pearson or spearman")
