"""PrivateSNN: conversion without data, encryption by training with spikes, and what an owner publishes.

The type of what is published is :class:`PublishedNetwork`; attacks on it see that and nothing else.
"""

from snnfl.private_snn.network import SURROGATE, PublishedNetwork, advance, analog, encoded, fire, run
from snnfl.private_snn.storage import load, save

__all__ = [
    "SURROGATE",
    "PublishedNetwork",
    "advance",
    "analog",
    "encoded",
    "fire",
    "load",
    "run",
    "save",
]
