"""Values of few bits: fake quantisers to train through, all of them pure functions."""

from snnfl.quantisation.fake import affine, rectified, straight_through, symmetric

__all__ = ["affine", "rectified", "straight_through", "symmetric"]
