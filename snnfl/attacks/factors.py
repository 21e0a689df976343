"""The gradient of a linear layer's weight as two thin factors, which gradient matching never has to multiply out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad
from torch.overrides import TorchFunctionMode

from snnfl.attacks.networks import Arrays, Network, soft_cross_entropy

LARGE = 2**17
"""Elements of a weight from which on reading it costs more than the further small products."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The matrix ``slopes^T inputs`` of a linear layer: of rank ``M`` at most, the rows that the layer was given.

    A batch of two images has a gradient of rank two, be the layer as large as it may: what is read of the matrix are
    its products, and the factors give those without the matrix.

    Attributes:
        slopes: Of the loss by the layer's outputs, ``[M, out]``.
        inputs: Of the layer, ``[M, in]``.
    """

    slopes: Tensor
    inputs: Tensor

    def inner(self, other: Tensor) -> Tensor:
        """Return ``<slopes^T inputs, other>`` for an array ``[out, in]``."""
        return ((self.slopes @ other) * self.inputs).sum()

    def square(self) -> Tensor:
        """Return ``||slopes^T inputs||^2``."""
        return ((self.slopes @ self.slopes.T) * (self.inputs @ self.inputs.T)).sum()


def factored_gradient(
    network: Network, arrays: Mapping[str, Tensor], trained: Sequence[str], inputs: Tensor, targets: Tensor
) -> dict[str, Tensor | Factors]:
    """Return the gradient of the cross-entropy by some arrays, of large linear layers' weights as factors.

    Args:
        network: Calls :func:`torch.nn.functional.linear` with the arrays that it is given.
        arrays: Of the network.
        trained: Names of those to differentiate by.
        inputs: Images, ``[N, ...]``.
        targets: Their label probabilities, ``[N, classes]``.
    """
    names = {id(arrays[name]): name for name in trained}
    with _Taps(names) as seen:
        network(arrays, inputs)  # for the shapes alone: what is computed here, nobody reads
    thin = {name for name in set(seen.found) if _thin(seen, name, arrays[name])}
    taps = [like.new_zeros(like.shape) for name, like in zip(seen.found, seen.outputs, strict=True) if name in thin]
    weights: Arrays = {name: arrays[name] for name in trained if name not in thin}

    def loss(weights: Arrays, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        given = {**arrays, **weights}
        with _Taps({id(given[name]): name for name in thin}, taps) as tapped:
            return soft_cross_entropy(network(given, inputs), targets), tapped.inputs

    (gradient, slopes), read = grad(loss, argnums=(0, 1), has_aux=True)(weights, taps)
    uses = [name for name in seen.found if name in thin]
    found: dict[str, Tensor | Factors] = {}
    for name in trained:
        if name in thin:
            own = [index for index, use in enumerate(uses) if use == name]
            found[name] = Factors(torch.cat([slopes[i] for i in own]), torch.cat([read[i] for i in own]))
        else:
            found[name] = gradient[name]
    return found


class _Taps(TorchFunctionMode):
    """Notes what linear layers are given and return, and adds a tap to each output: the slope by it is the output's.

    Attributes:
        found: Name of the weight at each use.
        inputs: Of the layer at each use.
        outputs: Likewise.
    """

    def __init__(self, names: Mapping[int, str], taps: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.names, self.taps = names, taps
        self.found, self.inputs, self.outputs = list[str](), list[Tensor](), list[Tensor]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function; if it is that of a linear layer with a weight by name, note it."""
        value = func(*args, **(kwargs or {}))
        if func is not F.linear or id(args[1]) not in self.names:
            return value
        if self.taps:
            value = value + self.taps[len(self.found)]
        self.found.append(self.names[id(args[1])])
        self.inputs.append(args[0])
        self.outputs.append(value)
        return value


def _thin(seen: _Taps, name: str, weight: Tensor) -> bool:
    """Tell whether factors save time: of a large weight, whose norm takes fewer numbers by rows than by elements."""
    given = [value for use, value in zip(seen.found, seen.inputs, strict=True) if use == name]
    rows = sum(map(len, given))
    return all(value.dim() == 2 for value in given) and weight.numel() > max(LARGE, rows**2)
