"""Values of few bits as pure functions: fake quantisers to train through, and codes that travel."""

from snnfl.quantisation.codes import most, pack, stochastic, unpack
from snnfl.quantisation.fake import affine, clip_floor_shift, rectified, straight_through, symmetric

__all__ = ["affine", "clip_floor_shift", "most", "pack", "rectified", "stochastic", "straight_through", "symmetric", "unpack"]
