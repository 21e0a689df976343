"""Kinds of updates: what travels between a server and its clients, and what either makes of it."""

from snnfl.updates.arrays import ArraySpec, ann_specs, control_specs, scale_of
from snnfl.updates.converted import Converted, converted_specs
from snnfl.updates.format import UpdateFormat
from snnfl.updates.native import Native
from snnfl.updates.packed import CODES, SCALES, Packing
from snnfl.updates.plain import Plain, Unsent
from snnfl.updates.summed import Sum, Summed, summed

__all__ = [
    "CODES",
    "SCALES",
    "ArraySpec",
    "Converted",
    "Native",
    "Packing",
    "Plain",
    "Sum",
    "Summed",
    "Unsent",
    "UpdateFormat",
    "ann_specs",
    "control_specs",
    "converted_specs",
    "scale_of",
    "summed",
]
