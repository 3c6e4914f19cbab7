"""The tasks' metrics, by scikit-learn, SciPy and rouge-score."""

from collections.abc import Sequence

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


def rouge(names: Sequence[str], texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """Compute ROUGE of texts against references, each pair by itself: F1 of stemmed words.

    ROUGE-L takes a text as one sentence, as is usual for one-sentence summaries; it is not ROUGE-Lsum. Source: Lin
    2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; the arithmetic is that of the library.

    Args:
        names: of ``rouge1``, ``rouge2`` and ``rougeL``.
        texts: ``n``, what was written.
        references: ``n``, what should have been.

    Returns:
        Fractions ``(n, len(names))``; 0.0 where no word is shared, as of an empty text.

    Raises:
        ModuleNotFoundError: the library is not installed; the text names the extra.
    """
    with extras.named():
        from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([*names], use_stemmer=True)
    found = [scorer.score(wanted, text) for text, wanted in zip(texts, references, strict=True)]
    return np.asarray([[row[name].fmeasure for name in names] for row in found], np.float64).reshape(-1, len(names))
