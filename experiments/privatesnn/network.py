"""The network that is published: trained here, or that of a finished run's server; never with a client's data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from experiments.privatesnn.folder import making
from experiments.privatesnn.setting import Setting, run_file
from snnfl import rng
from snnfl.conversion import fold
from snnfl.data import batches
from snnfl.files import write_bytes
from snnfl.private_snn import Bounds, affine_parameters, analog, bounds_of, norm_statistics
from snnfl.private_snn.synthesis import Statistics
from snnfl.spiking import SpikingGraph, load
from snnfl.training import Batch, load_arrays, train_locally
from snnfl.workspace import Workspace
from strategies.run_directory import SNN_FILE

Report = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Network:
    """An ANN as its weights and structure.

    Attributes:
        graph: The structure.
        parameters: Weights and biases, batch normalisation folded into them.
        statistics: Of its batch normalisation; empty where a server has none.
        bounds: Of the pixels.
        shape: Of an image.
        work: Data set and device.
    """

    graph: SpikingGraph
    parameters: dict[str, Tensor]
    statistics: Statistics
    bounds: Bounds
    shape: tuple[int, ...]
    work: Workspace

    def __call__(self, images: Tensor) -> Tensor:
        """Return the ANN's logits."""
        return analog(self.graph, self.parameters, images)


def network_of(setting: Setting, report: Report = lambda images: None) -> Network:
    """Read the network of a run, or that which is trained here; train it first if it isn't yet.

    Args:
        setting: Which.
        report: Told how many images each step of training had.

    Raises:
        ConversionError: If the network doesn't convert.
        TrainingDivergedError: If its training does.
    """
    work = Workspace(setting.config)
    torch.set_num_threads(setting.config.run.threads)
    if setting.run is not None and run_file(setting.run).name == SNN_FILE:
        converted = load(run_file(setting.run)).to(work.device)
        return _network(work, converted.graph, affine_parameters(converted.graph, converted.parameters), {})
    if setting.run is None and not setting.ann.exists():
        with making(setting.ann, {}):
            _train(work, report)
            arrays = {name: array.detach().contiguous().cpu() for name, array in work.arrays.items()}
            write_bytes(setting.ann, save(arrays))
    file = setting.ann if setting.run is None else run_file(setting.run)
    load_arrays(work.model, load_file(file))
    state = {name: array.detach() for name, array in work.arrays.items()}
    return _network(work, work.graph, fold(work.graph, state), norm_statistics(work.graph, state))


def _network(work: Workspace, graph: SpikingGraph, parameters: dict[str, Tensor], statistics: Statistics) -> Network:
    bounds, shape = bounds_of(work.dataset), work.dataset.input_shape
    return Network(graph=graph, parameters=parameters, statistics=statistics, bounds=bounds, shape=shape, work=work)


def training_images(work: Workspace) -> int:
    """Return how many images training sees in all its epochs."""
    return len(work.dataset.train_labels) * work.config.training.epochs


def _train(work: Workspace, report: Report) -> None:
    config, dataset = work.config, work.dataset
    draw, indices = rng.generator(config.run.seed, "batches"), torch.arange(len(dataset.train_labels))

    def epoch() -> Iterator[Batch]:
        for images, labels in batches(
            dataset, indices, config.training.batch_size, generator=draw, augment=config.data.augment
        ):
            yield images.to(work.device, memory_format=work.layout), labels.to(work.device)
            report(len(labels))

    train_locally(work.model, (epoch() for _ in range(config.training.epochs)), config.training, server_round=1)
