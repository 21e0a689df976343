"""Local training whose result is differentially private for each sample: DP-SGD on a client's data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from flwr.app import Context, Message

from clients.participant import client_data, orders_of, run_workspace
from clients.privacy_mod import noise_stream
from snnfl.batching import batch_count
from snnfl.data import batches
from snnfl.protocol import NOISE_MULTIPLIER
from snnfl.rng import generator
from snnfl.training import Batch, Objective, TrainingResult
from snnfl.training.private import GaussianGradients, train_privately


def train_on_private_samples(
    message: Message, context: Context, objective: Objective, *, server_round: int, partition: int
) -> TrainingResult:
    """Train the loaded model on the client's samples by DP-SGD (Abadi et al. 2016).

    Each step sees each sample with probability ``batch size / samples``, independently of the others.
    """
    work, data = run_workspace(context), client_data(context)
    config, samples = work.config, len(data.indices)
    stream = noise_stream(message, context)
    steps = config.training.epochs * batch_count(samples, config.training.batch_size)
    rate = min(1.0, config.training.batch_size / samples)
    gradients = GaussianGradients(
        norm=1.0 if config.privacy.clipping_norm is None else config.privacy.clipping_norm,
        noise=float(orders_of(message)[NOISE_MULTIPLIER]),  # type: ignore[arg-type]
        expected=rate * samples,
        normal=stream.normal,
    )
    draw = generator(config.run.seed, "batches", server_round, partition)

    def drawn() -> Iterator[Batch]:
        for _ in range(steps):
            indices = data.indices[torch.from_numpy(stream.uniform(samples) < rate)]
            if len(indices):
                pair = next(
                    iter(batches(data.dataset, indices, len(indices), generator=draw, augment=config.data.augment))
                )
            else:
                shape = data.dataset.input_shape
                pair = torch.empty(0, *shape), torch.empty(0, dtype=torch.int64)
            yield pair[0].to(work.device), pair[1].to(work.device)

    return train_privately(
        work.model, drawn(), config.training, gradients, server_round=server_round, objective=objective, samples=samples
    )
