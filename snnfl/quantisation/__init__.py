"""Values of few bits: fake quantisers to train through, the activation made of one, and codes that travel."""

from snnfl.quantisation.codes import most, pack, stochastic, unpack
from snnfl.quantisation.fake import affine, clip_floor_shift, rectified, straight_through, symmetric
from snnfl.quantisation.qcfs import QCFS, SMALLEST_THRESHOLD, fitting_thresholds, measure_statistics, with_qcfs

__all__ = [
    "QCFS",
    "SMALLEST_THRESHOLD",
    "affine",
    "clip_floor_shift",
    "fitting_thresholds",
    "measure_statistics",
    "most",
    "pack",
    "rectified",
    "stochastic",
    "straight_through",
    "symmetric",
    "unpack",
    "with_qcfs",
]
