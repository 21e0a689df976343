"""Trains the checkpoint of ``benchmarks/accuracy.py``: He's ResNet-20 on CIFAR-10, 20 epochs, an hour on one core.

``python benchmarks/checkpoints/train.py OUTPUT.safetensors`` with CIFAR-10 in ``SNNFL_DATA``. SGD with a one-cycle
schedule; pictures are cropped and mirrored at random.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from snnfl.config import DataConfig, ModelConfig
from snnfl.data import Dataset, load
from snnfl.data.augmentation import augment
from snnfl.models import build_model
from snnfl.training import exchangeable

BATCH = 128


def train(model: nn.Module, data: Dataset, draw: torch.Generator, *, epochs: int, rate: float, warming: float) -> None:
    """Train in place; the rate rises over a part ``warming`` of the steps and falls over the others."""
    per_epoch = len(data.train_images) // BATCH
    steps = epochs * per_epoch
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=warming)
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
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, data, draw, epochs=20, rate=0.2, warming=0.25)
    save_file({name: array.contiguous() for name, array in exchangeable(model).items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
