"""One model per process that stays where it is: weights are copied into it and read from it by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def exchangeable(model: nn.Module) -> dict[str, Tensor]:
    """Return the arrays that travel between clients and server, in the order of the model's definition.

    These are all parameters and the running statistics of batch normalisation. Its ``num_batches_tracked`` stays: it is
    a whole number, whose weighted average is none, and it only matters to a batch normalisation without momentum.

    Returns:
        Detached views on the model's memory, not copies: they change as the model trains, and writing to one writes to
        the model. Clone what must outlive the next step.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: array for name, array in model.state_dict().items() if name in parameters or is_statistic(name)}


def is_statistic(name: str) -> bool:
    """Tell whether an exchanged array is a running mean or variance of batch normalisation: measured, not trained."""
    return name.rpartition(".")[2] in _STATISTICS


def normalisation(names: Iterable[str]) -> tuple[str, ...]:
    """Return which arrays are batch normalisation's: its statistics, and the gamma and beta beside them.

    >>> normalisation(["conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"])
    ('norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var')
    """
    known = tuple(names)
    layers = {name.rpartition(".")[0] for name in known if is_statistic(name)}
    return tuple(name for name in known if name.rpartition(".")[0] in layers)


def private_biases(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the biases of convolutions and linear layers: what SNFL keeps on the client (section 4.2).

    Any layer's ``bias`` counts but batch normalisation's, which is the beta that the server needs to recover the
    weights; so a kind of layer that nobody thought of is private rather than published.
    """
    return tuple(
        f"{prefix}.bias" if prefix else "bias"
        for prefix, module in model.named_modules()
        if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm))
        and any(name == "bias" for name, _ in module.named_parameters(recurse=False, remove_duplicate=False))
    )


def load_arrays(model: nn.Module, arrays: Mapping[str, Tensor], *, names: Collection[str] | None = None) -> None:
    """Copy arrays into a model, in place, after checking all of them: on an error the model is as it was.

    Args:
        model: Keeps its memory, its devices and its dtypes, so an optimiser or a view on it stays valid.
        arrays: By name; they may lie on another device and are only read.
        names: Exactly the names that ``arrays`` must have; by default those of :func:`exchangeable`.

    Raises:
        ValueError: For an array that is missing, unexpected or of the wrong shape.
    """
    copy_arrays(exchangeable(model), arrays, names=names)


@torch.no_grad()
def copy_arrays(
    targets: Mapping[str, Tensor], arrays: Mapping[str, Tensor], *, names: Collection[str] | None = None
) -> None:
    """Do what :func:`load_arrays` does, on the views of a model that :func:`exchangeable` returned earlier.

    Raises:
        ValueError: As :func:`load_arrays`.
    """
    expected = list(targets) if names is None else names
    cause = "is the sender's model (model.name, its options, data.source) the receiver's?"
    for name in expected:
        if name not in arrays:
            raise ValueError(f"array {name!r} is missing from the {len(arrays)} received; {cause}")
    for name, array in arrays.items():
        if name not in expected or name not in targets:
            raise ValueError(f"array {name!r} of shape {list(array.shape)} is unexpected; {cause}")
        if array.shape != targets[name].shape:
            raise ValueError(
                f"array {name!r} has shape {list(array.shape)}, expected {list(targets[name].shape)}; {cause}"
            )
    for name, array in arrays.items():
        targets[name].copy_(array)
