"""The networks that clients train, by name."""

from snnfl.models import cnn, convnet, lenet, mlp, resnet, vgg  # noqa: F401  (each registers its builders)
from snnfl.models.initialisation import initialise
from snnfl.models.over_time import multiply_in_bfloat16
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
    "drawing",
    "image_shape",
    "initialise",
    "multiply_in_bfloat16",
    "names",
    "register",
    "with_default_surrogate",
]
