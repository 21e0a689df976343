"""What a process needs to take part in a run, built once from the configuration and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.config import OWN, Config, ConfigError, client_side, converts, nearest, spikes_natively, update_kind
from snnfl.config.checks import SPIKING
from snnfl.config.declaration import show
from snnfl.conversion import fold
from snnfl.data import Dataset, data_root, label_counts, load, partition
from snnfl.data.own import client_places, read_own, server_data
from snnfl.heap import keep_freed_memory
from snnfl.metrics import Structure
from snnfl.models import (
    MODELS,
    SMALLEST_THRESHOLD,
    SpikingModel,
    build_model,
    drawing,
    full_precision,
    learned_ranges,
    multiply_in_bfloat16,
)
from snnfl.plugins import load_installed
from snnfl.private_snn import last_weight
from snnfl.spiking import ConversionError, SpikingGraph, trace
from snnfl.training import exchangeable, needs_two, normalisation
from snnfl.training.starting import quantise_activations, start_from
from snnfl.updates import Converted, Native, Packing, Plain, Unsent, UpdateFormat

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds that people have; torch knows more."""

LEVELS = 8
"""Of quantised activations, where nothing else is said."""

PICTURES = 64
"""Of noise, on which their thresholds start."""

EVALUATION = "encoding of evaluation"
"""Purpose of what a random encoding draws where a model is measured: without coordinates, so the same each time."""


@dataclass(frozen=True)
class ClientData:
    """What one client trains and tests on.

    Attributes:
        dataset: Its training split holds the client's examples, its test split is what the client tests on.
        indices: The client's positions in the training split, ``int64`` of shape ``[n]``.
    """

    dataset: Dataset
    indices: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels of the client's examples."""
        return self.dataset.train_labels[self.indices]


class Workspace:
    """Data set, partitions, one resident model and its graph, each made on first use.

    Everything follows from the configuration: a server and its clients, in one process or on many machines, build
    equal workspaces. The model is shared by all clients of a process; whoever uses it loads its arrays first.

    Args:
        config: Of the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lent: Dataset | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where models run.

        Raises:
            ConfigError: If this machine doesn't have it.
        """
        name = self.config.run.device
        try:
            device = torch.device(name)
        except RuntimeError:
            meant = re.sub("^gpu", "cuda", name.lower())
            known = re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", meant)
            hint = f"; did you mean {meant!r}?" if known else nearest(name, DEVICES)
            raise ConfigError(f"run.device={name}: no device of torch's{hint}") from None
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # NotImplementedError is one
            reason = show(str(error).splitlines()[0])
            raise ConfigError(f"run.device={name}: not available on this machine ({reason}); use cpu") from None

    @cached_property
    def dataset(self) -> Dataset:
        """The whole data set: a simulation's clients share its memory.

        Where each node has data of its own, it holds no samples, but what a run states of them.
        """
        return load(self.config.data)

    @cached_property
    def server_data(self) -> Dataset:
        """What the server tests on: the data set, or its own data where each node has its own; then it may be empty."""
        data = self.config.data
        return server_data(data_root(data.root), data) if data.source == OWN else self.dataset

    def client(self, partition: int, place: Path | None = None) -> ClientData:
        """Return what a client trains and tests on.

        Args:
            partition: The client's number.
            place: Of a node's own data; ``None`` for those of a simulation, below ``data.root``. Where clients share
                one data set, it plays no role.

        Raises:
            ConfigError: If own data aren't there, or don't fit what the run states.
        """
        if self.config.data.source != OWN:
            found = ClientData(self.dataset, self.partitions[partition])
        else:
            own = read_own(self._places[partition] if place is None else place, self.config.data)
            found = ClientData(own, torch.arange(len(own.train_labels)))
        return found if self._lent is None else replace(found, dataset=self._lent)

    @cached_property
    def _places(self) -> tuple[Path, ...]:
        """Where the clients of a simulation have data of their own."""
        return client_places(data_root(self.config.data.root), self.config.data.clients)

    @contextmanager
    def holding(self, dataset: Dataset) -> Iterator[None]:
        """Let a client hold another data set, of the same size, for a while; its positions in it stay as they are.

        A client that poisons its data does so for itself: the clients of a process share the workspace.
        """
        self._lent = dataset
        try:
            yield
        finally:
            self._lent = None

    def label_counts(self) -> Tensor:
        """Count each client's examples of each label: ``int64`` of shape ``[clients, classes]``."""
        clients = map(self.client, range(self.config.data.clients))
        classes = self.dataset.classes
        return torch.cat([label_counts(each.dataset.train_labels, [each.indices], classes) for each in clients])

    @cached_property
    def partitions(self) -> tuple[Tensor, ...]:
        """Each client's indices into the training split that clients share."""
        return partition(self.dataset.train_labels, self.config.data, self.config.run.seed, self.dataset.users)

    @cached_property
    def model(self) -> nn.Module:
        """The resident model, with the run's initial weights until somebody loads others.

        Its weights are laid out channels last: on a CPU convolutional networks train about a fifth faster.
        """
        model = build_model(
            self.config.model,
            input_shape=self.dataset.input_shape,
            classes=self.dataset.classes,
            generator=rng.generator(self.config.run.seed, "initial weights"),
            sequence=self.dataset.sequence,
            quantization=self.config.quantization,
        )
        if isinstance(model, SpikingModel):
            model.per_step = self.config.training.loss == "per_step"
            multiply_in_bfloat16(model, self.config.training.precision == "bfloat16")
        if self.config.training.activation == "qcfs":
            draw = rng.generator(self.config.run.seed, "pictures that thresholds start from")
            pictures = torch.randn(PICTURES, *self.dataset.input_shape, generator=draw)
            quantise_activations(model, self.config.training.levels or LEVELS, pictures, self.config.model.weights)
        elif self.config.model.weights is not None:
            start_from(self.config.model.weights, model)
        laid_out: nn.Module = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return laid_out

    @cached_property
    def layout(self) -> torch.memory_format:
        """How a batch of pictures is best laid out: as the convolutions' weights, or each would lay it out anew."""
        convolutions = any(parameter.dim() == 4 for parameter in self.model.parameters())
        pictures = len(self.dataset.input_shape) == 3
        return torch.channels_last if convolutions and pictures else torch.contiguous_format

    @contextmanager
    def drawing(self, purpose: str, *coordinates: int) -> Iterator[None]:
        """Let a random encoding of the resident model draw from a generator of its own for a while.

        It draws on the run's device, so that spikes on a GPU are others than on a CPU.

        Args:
            purpose: What is drawn: ``"encoding"`` in training, :data:`EVALUATION` where the model is measured.
            coordinates: Round and partition in training.
        """
        seed = rng.derive_seed(self.config.run.seed, purpose, *coordinates)
        with drawing(self.model, torch.Generator(self.device).manual_seed(seed)):
            yield

    def batch_draw(self, server_round: int, partition: int) -> torch.Generator:
        """Return what draws a client's batches of a round; whoever knows the run's seed can draw them, too."""
        return rng.generator(self.config.run.seed, "batches", server_round, partition)

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """The resident model's own arrays: what is written to them is in the model, and stays where it is."""
        return exchangeable(self.model)

    def settle(self) -> None:
        """Put what neurons have learned back where an update must have it: leaks into 0..1, thresholds above zero.

        So are the ranges of quantised activations. What lies beyond, neurons clip: it is the same network, and a
        gradient reaches the leak or threshold again.
        """
        for name, spec in self.format.specs.items():
            if spec.values == "share":
                self.arrays[name].clamp_(0, 1)
            elif spec.values == "positive" and name in self.arrays:
                self.arrays[name].clamp_(min=SMALLEST_THRESHOLD)

    @cached_property
    def initial_state(self) -> dict[str, Tensor]:
        """Copies of the initial arrays, on the CPU."""
        return {name: array.cpu().clone() for name, array in self.arrays.items()}

    @cached_property
    def format(self) -> UpdateFormat:
        """What travels between server and clients.

        Raises:
            ConversionError: As :attr:`graph`, if clients convert.
            ConfigError: If they calibrate biases in time for fewer steps than the network is simulated, or are to keep
                a batch normalisation that the model doesn't have.
        """
        config, state = self.config, self.initial_state
        private = self._private_norms()
        own: UpdateFormat = Plain(state, private=private, positive=learned_ranges(self.model))
        if isinstance(self.model, SpikingModel):
            own = Native(state, self.model.layers, private=private)
        elif converts(config):
            bits, back = config.quantization.weights, config.strategy.bias_back
            if config.conversion.data == "synthetic":
                last_weight(self.graph, fold(self.graph, state))  # before a client trains in vain
            own = Converted(self.graph, state, config.conversion, bias_back=back, weight_bits=bits)
        return Unsent(own, state) if update_kind(config) == "none" else own

    @cached_property
    def packing(self) -> Packing | None:
        """How quantised uploads travel; ``None`` if they aren't quantised.

        Raises:
            ConversionError: As :attr:`format`.
            ConfigError: Likewise.
        """
        bits = self.config.quantization.uploads
        return Packing(self.format, bits) if bits else None

    def _private_norms(self) -> tuple[str, ...]:
        """Return the arrays of batch normalisation, where they stay on the clients."""
        if not client_side(self.config).own_normalisation:
            return ()
        if not (names := normalisation(self.initial_state)):
            raise ConfigError(
                f"strategy.name={self.config.strategy.name}: model.name={self.config.model.name} has no batch "
                "normalisation that clients could keep; take a model with it, or fedavg"
            )
        return names

    @cached_property
    def graph(self) -> SpikingGraph:
        """The model's spiking graph.

        Raises:
            ConversionError: If the model doesn't convert, or an S-run wouldn't exchange all of its parameters.
        """
        pooling = self.config.conversion.max_pooling
        with full_precision(self.model):
            graph = trace(self.model, max_pooling=pooling, input_shape=self.dataset.input_shape)
        layers = {name for node in graph.affines for name in (node.name, node.norm) if name is not None}
        known = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {*graph.learned_thresholds}
        parameters = {name for name, _ in self.model.named_parameters()}
        if unused := sorted(parameters - known):
            raise ConversionError(
                f"parameter {unused[0]} is in no layer of the spiking network, or a weight is computed from it; remove "
                "it from the model, or what computes a weight"
            )
        if computed := [
            node.name for node in graph.affines if node.norm is None and f"{node.name}.weight" not in parameters
        ]:
            raise ConversionError(
                f"{computed[0]} is computed from constants of the model, which a federation does not exchange; put "
                "them into a layer, or into the data's normalisation"
            )
        if plain := [node.norm for node in graph.affines if node.norm and f"{node.norm}.weight" not in parameters]:
            raise ConversionError(f"{plain[0]} has no gamma and beta for the server; build it with affine=True")
        return graph

    @cached_property
    def structure(self) -> Structure | None:
        """The ordinary network that a spiking model was made of, traced; ``None`` if it doesn't trace.

        On it synaptic operations are counted, and exports are made. The model itself has no graph.
        """
        unset: dict[str, Any] = dict.fromkeys(SPIKING)
        ordinary = replace(self.config.model, neuron="relu", weights=None, **unset)
        shape = self.dataset.input_shape[1:] if self.dataset.sequence else self.dataset.input_shape
        draw = rng.generator(0, "weights that nobody reads")
        twin = build_model(ordinary, input_shape=shape, classes=self.dataset.classes, generator=draw)
        try:
            graph = trace(twin.to(self.device), pool_first=False, input_shape=shape)
            return Structure(graph=graph, parameters=fold(graph, exchangeable(twin)))
        except (ConversionError, ValueError):
            return None

    def check_batches(self) -> None:
        """Check that no client would train on a batch of one sample where batch normalisation cannot.

        A single sample that is left over joins the batch before, so it takes a client, or batches, of one.

        Raises:
            ConfigError: If one would.
        """
        name, image = self.config.model.name, torch.zeros(1, *self.dataset.input_shape, device=self.device)
        norm = MODELS.made(name, lambda: needs_two(self.model, image))
        if norm is None:
            return
        reason = f"{norm} of model.name={self.config.model.name} cannot normalise a batch of one"
        for option in ("batch_size", "micro_batch"):
            if getattr(self.config.training, option) == 1:
                raise ConfigError(f"training.{option}=1: {reason}; take at least 2, or a model without it")
        if self.config.data.source == OWN:
            return  # each node looks for itself
        if alone := [client for client, part in enumerate(self.partitions) if len(part) == 1]:
            raise ConfigError(
                f"data.minimum_samples={self.config.data.minimum_samples}: client {alone[0]} has a single training "
                f"sample, and {reason}; take at least 2, or a model without it"
            )

    def test_images(self, server_round: int) -> int:
        """Return how many test images a round is evaluated on; 0 is all of them, which the last round uses."""
        return 0 if server_round >= self.config.run.rounds else self.config.evaluation.images


@lru_cache(maxsize=1)
def workspace(config: Config) -> Workspace:
    """Return this process's workspace for a configuration, and give the process its threads and its way with memory.

    The initial state is taken before anybody trains the resident model.

    Raises:
        ConfigError: If it names what nobody has registered here, or a plug-in of this process fails.
    """
    load_installed()
    torch.set_num_threads(config.run.threads)
    if spikes_natively(config):
        keep_freed_memory()
    made = Workspace(config)
    _ = made.initial_state
    return made
