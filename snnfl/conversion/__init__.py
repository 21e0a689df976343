"""Conversion of a trained ANN to a calibrated spiking network, and what the server can invert of it."""

from snnfl.config import ConversionConfig
from snnfl.conversion.convert import convert, convert_state
from snnfl.conversion.exposure import exposed_biases
from snnfl.conversion.folding import (
    BatchNormState,
    UnrecoverableError,
    fold,
    fold_batch_norm,
    recover,
    recover_bias,
    recover_weight,
)
from snnfl.conversion.silence import ConversionWarning
from snnfl.conversion.thresholds import mmse_threshold
from snnfl.spiking import ConversionError, SpikingNetwork, trace

__all__ = [
    "BatchNormState",
    "ConversionConfig",
    "ConversionError",
    "ConversionWarning",
    "SpikingNetwork",
    "UnrecoverableError",
    "convert",
    "convert_state",
    "exposed_biases",
    "fold",
    "fold_batch_norm",
    "mmse_threshold",
    "recover",
    "recover_bias",
    "recover_weight",
    "trace",
]
