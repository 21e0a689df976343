"""Who of a round's clients poisons the model, judged by their updates alone."""

from snnfl.detection import thresholds, updates  # noqa: F401  (each registers its detectors)
from snnfl.detection.registry import Detector, DetectorError, Findings, Verdict, detect, get_detector, names, register
from snnfl.detection.view import RoundView

__all__ = [
    "Detector",
    "DetectorError",
    "Findings",
    "RoundView",
    "Verdict",
    "detect",
    "get_detector",
    "names",
    "register",
]
