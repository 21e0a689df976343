"""Who of a round's clients poisons the model, judged by their updates alone."""

from snnfl.detection import thresholds, updates  # noqa: F401  (each registers its detectors)
from snnfl.detection.registry import Detector, Findings, Verdict, detect, get_detector, names, register
from snnfl.detection.view import RoundView

__all__ = ["Detector", "Findings", "RoundView", "Verdict", "detect", "get_detector", "names", "register"]
