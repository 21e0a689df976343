"""Trains the checkpoint of few steps: ``resnet20_cifar10.safetensors`` goes on with QCFS activations of eight levels.

``python benchmarks/checkpoints/train_qcfs.py OUTPUT.safetensors`` with CIFAR-10 in ``SNNFL_DATA``: 6 epochs, some 15
minutes on one core. Named ``resnet20_qcfs8_cifar10.safetensors`` beside the other, ``benchmarks/accuracy.py`` measures
it. Thresholds start where quantised activations come nearest to the ReLU network's on 128 training images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from train import train

from snnfl.config import DataConfig, ModelConfig
from snnfl.data import load
from snnfl.models import build_model
from snnfl.quantisation import fitting_thresholds, with_qcfs
from snnfl.training import exchangeable, load_arrays

LEVELS = 8
RELU = Path(__file__).parent / "resnet20_cifar10.safetensors"


def main(path: str) -> None:
    """Train with seed 0 and save."""
    torch.set_num_threads(1)
    data, draw = load(DataConfig(source="cifar10")), torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name="resnet20"), input_shape=(3, 32, 32), classes=10, generator=draw)
    load_arrays(model, load_file(RELU))
    images = data.normalise(data.train_images[:128])
    with_qcfs(model, LEVELS, fitting_thresholds(model, images, LEVELS))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, data, draw, epochs=6, rate=0.1, warming=0.1)
    save_file({name: array.contiguous() for name, array in exchangeable(model).items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
