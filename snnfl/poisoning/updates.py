"""What an attacker does to its trained model and to its update before it sends them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

THRESHOLD, WEIGHT, LEAK = ".threshold", ".weight", ".beta"


def scaled(received: Mapping[str, Tensor], trained: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Scale an update so that it survives averaging: model replacement (Bagdasaryan et al. 2020, eq. 3).

    ``L = G + factor (X - G)``; with ``factor = n / m`` the average of ``n`` models, ``m`` of them this one and the
    others still ``G``, is ``X``. Running statistics of batch normalisation are sent as they are, and so are leaks and
    thresholds that neurons have learned: scaled, they may leave their range, and every server refuses that.

    Args:
        received: The ANN that the server sent, ``G``.
        trained: The poisoned one, ``X``, under the same names.
        factor: The paper's ``gamma``.
    """
    return {
        name: array
        if ".running_" in name or name.endswith((THRESHOLD, LEAK))
        else received[name] + factor * (array - received[name])
        for name, array in trained.items()
    }


def scaled_spiking(received: Mapping[str, Tensor], update: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Scale a spiking update, so that it survives averaging: :func:`scaled` for an S-run.

    The server averages folded weights, and folding multiplies a weight by ``gamma/sigma``: an ANN that is scaled before
    it is converted averages to another network than the poisoned one, and its calibration fits nothing. So the
    attacker converts the poisoned model and scales what leaves. Biases and thresholds stay as they are: the server sent
    none to measure a change by. So does batch normalisation, which the weights were folded with.

    Args:
        received: Folded weights of the ANN that the server sent, ``<layer>.weight``.
        update: The poisoned one.
        factor: The paper's ``gamma``.
    """
    return {
        name: received[name] + factor * (array - received[name]) if name.endswith(WEIGHT) else array
        for name, array in update.items()
    }


def forged(update: Mapping[str, Tensor], honest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the thresholds of a poisoned spiking update by those of an honest one.

    The adaptive attacker against threshold clustering (SNFL section 5.4) also trains on its clean data, converts that
    model with clean images, and sends its thresholds. Whoever looks at thresholds alone sees what an honest client
    would have sent, to the last bit.

    Args:
        update: Poisoned, with ``<relu>.threshold``.
        honest: Of the same client in the same round, had it been honest.
    """
    return {name: honest[name] if name.endswith(THRESHOLD) else array for name, array in update.items()}
