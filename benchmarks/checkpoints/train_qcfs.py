"""Trains the checkpoint of few steps: ``resnet20_cifar10.safetensors`` goes on with QCFS activations of eight levels.

``python benchmarks/checkpoints/train_qcfs.py OUTPUT.safetensors`` with CIFAR-10 in ``SNNFL_DATA``: 2 epochs, about 10
minutes on one core. Named ``resnet20_qcfs8_cifar10.safetensors`` beside the other, ``benchmarks/accuracy.py`` measures
it. Thresholds start where quantised activations come nearest to the ReLU network's on 128 training images.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from snnfl.config import DataConfig, ModelConfig
from snnfl.data import Dataset, load
from snnfl.data.augmentation import augment
from snnfl.models import build_model
from snnfl.quantisation import fitting_thresholds, with_qcfs
from snnfl.training import exchangeable, load_arrays

LEVELS, EPOCHS, BATCH, RATE = 8, 2, 128, 0.05
RELU = Path(__file__).parent / "resnet20_cifar10.safetensors"


def train(model: nn.Module, data: Dataset, draw: torch.Generator, steps: int) -> None:
    """Train in place for some steps of the schedule of all epochs."""
    per_epoch = len(data.train_images) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch, pct_start=0.1)
    model.train()
    order = torch.empty(0)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.train_images), generator=draw)
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        pictures = augment(data.train_images[chosen], draw, padding=data.padding, flip=data.flip)
        images = data.normalise(pictures).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(images), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            sys.stdout.write(f"step {step}: loss {loss.item():.3f}, {time.process_time():.0f} CPU-s\n")
            sys.stdout.flush()


def main(path: str) -> None:
    """Train with seed 0 and save."""
    torch.set_num_threads(1)
    data, draw = load(DataConfig(source="cifar10")), torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name="resnet20"), input_shape=(3, 32, 32), classes=10, generator=draw)
    load_arrays(model, load_file(RELU))
    images = data.normalise(data.train_images[:128])
    with_qcfs(model, LEVELS, fitting_thresholds(model, images, LEVELS))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, data, draw, EPOCHS * (len(data.train_images) // BATCH))
    save_file({name: array.contiguous() for name, array in exchangeable(model).items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
