"""One rule for who stands out, shared by every detector whose paper gives none."""

from __future__ import annotations

from torch import Tensor

CUTOFF = 3.5
"""Of the modified z-score (Iglewicz and Hoaglin 1993, section 3)."""


def outliers(scores: Tensor) -> Tensor:
    """Tell whose score is too large for the round: ``(s - median) > 3.5 * 1.4826 MAD``.

    MAD is the median absolute deviation from the median. Where more than half of the scores are equal it is 0, and
    1.2533 times the mean absolute deviation takes its place, as the same source says.

    Args:
        scores: Finite, ``[clients]``, float64; large is suspicious.

    Returns:
        Boolean, ``[clients]``.
    """
    deviation = scores - scores.quantile(0.5)
    spread = 1.4826 * deviation.abs().quantile(0.5)
    if spread == 0:
        spread = 1.2533 * deviation.abs().mean()
    return deviation > CUTOFF * spread
