"""PrivateSNN: conversion without data, encryption by training with spikes, and what an owner publishes.

The type of what is published is :class:`PublishedNetwork`; attacks on it see that and nothing else.
"""

from snnfl.private_snn.conversion import affine_parameters, convert, largest_current, spike_counts, unfolded
from snnfl.private_snn.encryption import Encryption, begin, encrypt_epoch, encryption_loss, teacher_logits
from snnfl.private_snn.energy import EnergyRatios, energy_ratios
from snnfl.private_snn.network import SURROGATE, PublishedNetwork, advance, analog, encoded, fire, run
from snnfl.private_snn.storage import load, save
from snnfl.private_snn.synthesis import (
    Bounds,
    bounds_of,
    class_similarity,
    client_images,
    last_weight,
    norm_statistics,
    soft_labels,
    synthesise,
)

__all__ = [
    "SURROGATE",
    "Bounds",
    "Encryption",
    "EnergyRatios",
    "PublishedNetwork",
    "advance",
    "affine_parameters",
    "analog",
    "begin",
    "bounds_of",
    "class_similarity",
    "client_images",
    "convert",
    "encoded",
    "encrypt_epoch",
    "encryption_loss",
    "energy_ratios",
    "fire",
    "largest_current",
    "last_weight",
    "load",
    "norm_statistics",
    "run",
    "save",
    "soft_labels",
    "spike_counts",
    "synthesise",
    "teacher_logits",
    "unfolded",
]
