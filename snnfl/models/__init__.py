"""The networks that clients train, by name."""

from snnfl.models import cnn, conv_mlp, convnet, lenet, mlp, resnet, vgg  # noqa: F401  (each registers its builders)
from snnfl.models.initialisation import initialise
from snnfl.models.over_time import multiply_in_bfloat16
from snnfl.models.quantised import deployed, full_precision, learned_ranges, mute_potentials
from snnfl.models.registry import MODELS, build_model, check_model, image_shape, names, register
from snnfl.models.spiking import SpikingModel, drawing, with_default_surrogate
from snnfl.models.spiking_layers import SMALLEST_THRESHOLD, SpikingNeurons

__all__ = [
    "MODELS",
    "SMALLEST_THRESHOLD",
    "SpikingModel",
    "SpikingNeurons",
    "build_model",
    "check_model",
    "deployed",
    "drawing",
    "full_precision",
    "image_shape",
    "initialise",
    "learned_ranges",
    "multiply_in_bfloat16",
    "mute_potentials",
    "names",
    "register",
    "with_default_surrogate",
]
