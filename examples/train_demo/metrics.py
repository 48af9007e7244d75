"""Shares of words and answers that are right."""

import math


def word_errors(reference: str, hypothesis: str) -> int:
    """Word-level edit distance."""
    ref, hyp = reference.split(), hypothesis.split()
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        previous, row[0] = row[0], i
        for j, h in enumerate(hyp, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (r != h))
    return row[-1]


def word_accuracy(pairs: list[tuple[str, str]]) -> float:
    """1 - word error rate over (reference, hypothesis) pairs."""
    total = sum(len(ref.split()) for ref, _ in pairs)
    return 1 - sum(word_errors(ref, hyp) for ref, hyp in pairs) / max(1, total)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share."""
    if not count:
        return (0.0, 1.0)
    z, p = 1.96, hits / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return ((centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count))
