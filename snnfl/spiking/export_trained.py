"""A network that was trained as a spiking one as a file of NIR (:mod:`snnfl.spiking.export_nir` says what NIR is).

* **Time.** A step is 0.1 ms: :data:`STEP`, the ``dt`` that snnTorch assumes. NIR's leaky neuron,
  ``tau dv/dt = (v_leak - v) + R I``, is then ours in one Euler step: ``tau = dt / (1 - beta)``, ``R = 1 / (1 - beta)``,
  ``v_leak = 0`` give ``v <- beta v + I``. A neuron without a leak is NIR's ``IF``, whose unit of time is our step.
* **Threshold.** Both fire at ``v > v_threshold``.
* **Reset.** NIR sets ``v`` to 0 in the step of the spike: ``model.reset=zero`` with ``model.reset_delay=false``. Any
  other reset is up to the reader, as it is of converted networks; each neuron's metadata say it: ``reset``
  (``subtract`` or ``zero``) and ``reset_delay`` (1: with the next step, as in snnTorch).
* **Recurrence.** A layer's spikes come back over ``<layer>.recurrent``, one step later.
* **Readout.** What comes out are the currents of the output neurons, step by step, or their spikes where
  ``model.readout=rate``. Logits are what the model makes of them: ``model.readout(currents)``, or the spikes' mean.

NIR has no thresholds that adapt, no ReLU, and no neuron that tells its potential and fires.

snnTorch 1.0 reads these files (``snntorch.import_nir``). With ``reset_mechanism`` and ``reset_delay`` of its neurons as
the metadata say, and their ``state_function`` with them, outputs are equal. It takes ``IF`` for a leaky neuron of
``beta=0.9`` that forgets its state: set ``beta=1`` and ``init_hidden=True``. Where a potential is still above the
threshold after an immediate reset by subtraction, its neuron decides by another potential than ours, and than
spikingjelly's: tests/snnfl/spiking/test_export_trained.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from snnfl.neurons import Neuron, by_subtraction, to_zero
from snnfl.spiking.export import ExportError, optional_library
from snnfl.spiking.export_nir import Writer, shapes_of
from snnfl.spiking.graph import Parameters, Spike, SpikingGraph

STEP = 1e-4
"""Seconds of a time step in the file."""

RESETS = {by_subtraction: "subtract", to_zero: "zero"}


def trained_to_nir(
    graph: SpikingGraph,
    parameters: Parameters,
    neurons: Mapping[str, Neuron],
    input_shape: Sequence[int],
    path: str | Path,
    *,
    readout: Neuron | None = None,
) -> None:
    """Write a network of trained neurons as a NIR file.

    Args:
        graph: Structure, with a ReLU in the place of each layer of neurons.
        parameters: Weights and biases, batch normalisation folded in.
        neurons: By the name of their layer.
        input_shape: Of a sample, of sequences of one step.
        path: File to write, in one step.
        readout: Output neurons whose spikes are counted; ``None``: the file ends with their currents.

    Raises:
        ExportError: Naming the layer that NIR cannot express, or the package ``nir`` if it isn't installed.
    """
    nir = optional_library("nir", "snnfl[export]")
    shapes = shapes_of(graph, parameters, input_shape)
    writer = _TrainedWriter(nir, parameters, shapes, trained=neurons)
    writer.add(graph.input, nir.Input(np.array(input_shape)), [])
    for node in graph.nodes:
        writer.visit(node)
    if readout is not None:
        writer.place("readout", readout, shapes[graph.output], writer.sources[graph.output])
        writer.sources[graph.output] = ["readout"]
    writer.finish(graph.output, path)


@dataclass
class _TrainedWriter(Writer):
    """Writes trained neurons in the place of those of converted networks."""

    trained: Mapping[str, Neuron] = field(default_factory=dict)

    def neurons(self, node: Spike, shape: tuple[int, ...], sources: list[str]) -> None:
        """Add a layer of neurons."""
        if node.name not in self.trained:
            raise ExportError(f"{node.name}: NIR has no ReLU; only networks of model.neurons=all are written")
        self.place(node.name, self.trained[node.name], shape, sources)

    def place(self, name: str, neuron: Neuron, shape: tuple[int, ...], sources: list[str]) -> None:
        """Add neurons that read the sum of some nodes.

        Raises:
            ExportError: If NIR has no such neurons.
        """
        if neuron.adaptation is not None:
            raise ExportError(f"{name}: NIR has no thresholds that adapt (model.neuron=alif)")
        if neuron.store is not None:
            raise ExportError(f"{name}: NIR has no potentials of few levels (quantization.potentials)")
        if neuron.reset not in RESETS:
            raise ExportError(f"{name}: NIR has no neurons that fire without a reset")
        made = self._made(neuron, shape)
        made.metadata = {"reset": RESETS[neuron.reset], "reset_delay": int(neuron.delayed)}
        self.add(name, made, sources)
        if neuron.recurrent is not None:
            weight: Tensor = neuron.recurrent.weight  # type: ignore[attr-defined]  # a linear layer without a bias
            back = f"{name}.recurrent"
            self.nodes[back] = self.nir.Linear(weight.detach().cpu().numpy())
            self.edges += [(name, back), (back, name)]

    def _made(self, neuron: Neuron, shape: tuple[int, ...]) -> Any:
        threshold = np.full(shape, neuron.threshold.detach().cpu().numpy())
        zero, one = np.zeros_like(threshold), np.ones_like(threshold)
        leak = 1.0 if neuron.leak is None else float(neuron.leak)
        if leak == 1:
            return self.nir.IF(one, threshold, zero)
        resistance = one / (1 - leak)
        return self.nir.LIF(STEP * resistance, resistance, zero, threshold, zero)
