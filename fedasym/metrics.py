"""The tasks' metrics, by scikit-learn and SciPy."""

import numpy as np
from numpy.typing import NDArray


def score(name: str, predictions: NDArray[np.generic], labels: NDArray[np.generic]) -> float:
    """Compute one metric over all examples.

    Args:
        name: ``accuracy``, ``f1`` (macro average), ``pearson`` or ``spearman``.
        predictions: ``(n,)`` class ids, or scores for the correlations.
        labels: ``(n,)`` of the same kind.

    Returns:
        The metric as a fraction. A correlation with a constant is undefined; it counts as 0.0.

    Raises:
        ValueError: unknown metric.
    """
    if name == "accuracy":
        return float(np.mean(predictions == labels))
    if name == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    if name in ("pearson", "spearman"):
        from scipy import stats

        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
        return float(correlation(predictions, labels).statistic)
    raise ValueError(f"metric {name!r} is unknown; use accuracy, f1, pearson or spearman")
