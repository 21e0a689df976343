"""Trains the checkpoint of ``benchmarks/accuracy.py``: He's ResNet-20 on CIFAR-10, 10 epochs, 26 minutes on one core.

``python benchmarks/checkpoints/train.py OUTPUT.safetensors`` with CIFAR-10 in ``SNNFL_DATA``. SGD with a one-cycle
schedule; each batch is mirrored and shifted as a whole. The file beside this one was trained by an earlier version,
with the same recipe and other random draws.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from snnfl.config import DataConfig, ModelConfig
from snnfl.data import Dataset, load
from snnfl.models import build_model
from snnfl.training import exchangeable

EPOCHS, BATCH, RATE, PADDING = 10, 128, 0.2, 4


def train(model: nn.Module, data: Dataset, draw: torch.Generator, steps: int) -> None:
    """Train in place for some steps of the schedule of all epochs."""
    per_epoch = len(data.train_images) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch, pct_start=0.25)
    model.train()
    order = torch.empty(0)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.train_images), generator=draw)
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        images = data.normalise(data.train_images[chosen])
        if torch.rand((), generator=draw) < 0.5:
            images = images.flip(-1)
        down, right = torch.randint(0, 2 * PADDING + 1, (2,), generator=draw).tolist()
        images = F.pad(images, (PADDING,) * 4)[:, :, down : down + 32, right : right + 32]
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            sys.stdout.write(f"step {step}: loss {loss.item():.3f}\n")


def main(path: str) -> None:
    """Train with seed 0 and save."""
    torch.set_num_threads(1)
    data, draw = load(DataConfig(source="cifar10")), torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name="resnet20"), input_shape=(3, 32, 32), classes=10, generator=draw)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, data, draw, EPOCHS * (len(data.train_images) // BATCH))
    save_file({name: array.contiguous() for name, array in exchangeable(model).items()}, path)


if __name__ == "__main__":
    main(sys.argv[1])
