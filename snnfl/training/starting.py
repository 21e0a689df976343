"""What a model starts from: a file of weights, and of quantised activations the thresholds."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from snnfl.config import ConfigError
from snnfl.models import SpikingModel
from snnfl.quantisation import fitting_thresholds, measure_statistics, with_qcfs
from snnfl.training.resident import load_arrays


def quantise_activations(model: nn.Module, levels: int, pictures: Tensor, weights: str | None) -> None:
    """Put quantised activations in the place of ReLUs, whose thresholds fit the ReLU network's activations, in place.

    Args:
        model: An ordinary one, with initial weights.
        levels: ``L``.
        pictures: What thresholds are fitted on, ``[N, ...]``: noise, for nobody has private ones to show.
        weights: File that the model starts from, of a ReLU network, or of one that has learned thresholds and brings
            them along; ``None`` for the initial weights.

    Raises:
        ConfigError: As :func:`start_from`.
    """
    if weights is not None and any(name.endswith(".threshold") for name in _names(weights)):
        start_from(weights, with_qcfs(model, levels))
        return
    if weights is not None:
        start_from(weights, model)
    measured = copy.deepcopy(model).eval()
    if weights is None:
        measure_statistics(measured, pictures)
    with_qcfs(model, levels, fitting_thresholds(measured, pictures, levels))


def start_from(path: str, model: nn.Module) -> None:
    """Load the weights of a trained ANN.

    Raises:
        ConfigError: If the file is missing or damaged, or holds another network's arrays or a number that is none.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise ConfigError(f"model.weights={path}: it is a folder; take its {_network_in(file)}")
    try:
        arrays = load_file(file)
        if not isinstance(model, SpikingModel) and _holds_spiking(file):
            raise ValueError("it holds a spiking network, and model.neuron=relu takes an ANN's weights")
        load_arrays(model, arrays)
    except SafetensorError as error:
        raise ConfigError(f"model.weights={path}: it is no file of safetensors ({error})") from None
    except FileNotFoundError as error:
        instead = _network_in(file.parent)
        hint = f"; take {file.parent / instead}" if (file.parent / instead).exists() else ""
        raise ConfigError(f"model.weights={path}: {error}{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.weights={path}: {error}") from None
    if wrong := [name for name, array in arrays.items() if not torch.isfinite(array).all()]:
        raise ConfigError(f"model.weights={path}: {wrong[0]} holds a NaN or an infinity")


def _network_in(folder: Path) -> str:
    """Name the file of a run's network: spiking clients leave one that spikes, and no ANN."""
    names = ("final_ann.safetensors", "final_snn.safetensors")
    return next((name for name in names if (folder / name).exists()), names[0])


def _names(path: str) -> tuple[str, ...]:
    """Return the names of a file's arrays; none of a file that cannot be read, as :func:`_start_from` will say."""
    try:
        with safe_open(Path(path).expanduser(), "pt") as opened:
            return tuple(opened.keys())
    except (SafetensorError, OSError):
        return ()


def _holds_spiking(file: Path) -> bool:
    """Tell whether a file says of itself that it holds a converted or a trained spiking network."""
    with safe_open(file, "pt") as opened:
        about = json.loads((opened.metadata() or {}).get("snnfl", "{}"))
    return "graph" in about or about.get("kind") == "native"
