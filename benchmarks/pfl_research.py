"""Rounds of pfl-research, for ``federated_round.py``; this is no benchmark itself.

pfl-research is optional, for its pins are not ours:
``pip install --target DIR --no-deps pfl==0.6.0 dp-accounting==0.5.1 dm-tree prv-accountant multiprocess dill wrapt
mpmath absl-py attrs``, then ``PYTHONPATH=DIR``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.config import Config

Clock: TypeAlias = Callable[[], float]


def pfl_rounds(
    model: nn.Module, users: list[tuple[Tensor, Tensor]], config: Config, batch: int, rounds: int, clock: Clock
) -> list[float]:
    """Run pfl-research's federated averaging on the same users and model, without evaluation."""
    from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
    from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
    from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found]
    from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
    from pfl.data.dataset import Dataset  # type: ignore[import-not-found]
    from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
    from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found]
    from pfl.hyperparam import NNTrainHyperParams  # type: ignore[import-not-found]
    from pfl.metrics import Metrics  # type: ignore[import-not-found]
    from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]

    ticks: list[float] = []

    class Ticker(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *arguments: object, **keywords: object) -> tuple[bool, Any]:
            ticks.append(clock())
            return len(ticks) == rounds, Metrics()

    model.loss = lambda x, y, **_: F.cross_entropy(model(x), y)  # type: ignore[assignment]
    model.metrics = lambda *_, **__: {}  # type: ignore[assignment]
    training = config.training
    dataset = FederatedDataset(
        lambda user: Dataset(raw_data=list(users[user]), user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(len(users)))),
    )
    wrapped = PyTorchModel(
        model,
        local_optimizer_create=lambda parameters, lr: torch.optim.SGD(
            parameters, lr=lr, momentum=training.momentum, weight_decay=training.weight_decay, fused=True
        ),
        central_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    )
    with redirect_stdout(io.StringIO()):  # it prints metrics
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=rounds,
                evaluation_frequency=10**9,
                train_cohort_size=len(users),
                val_cohort_size=0,
            ),
            backend=SimulatedBackend(training_data=dataset, val_data=dataset),
            model=wrapped,
            model_train_params=NNTrainHyperParams(
                local_num_epochs=1, local_learning_rate=training.learning_rate, local_batch_size=batch
            ),
            callbacks=[Ticker()],
        )
    return ticks
