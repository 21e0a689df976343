"""A call of PyTorch that is being traced, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snnfl.spiking.graph import Affine, GraphNode
from snnfl.spiking.node_operations import Form

Options: TypeAlias = dict[str, Any]

BATCH = "the size of the batch"
"""Stands in an operation's options for a number that the forward reads from a tensor's shape."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that is being traced.

    Attributes:
        name: Of the node that will be made.
        terms: What it computes with: names of values and, where the row allows them, numbers and constant tensors.
        options: Its other arguments, less those that are ``None``.
        forms: Of the values among the terms.
        owner: The module whose own arrays the arrays among the options are, or ``None``.
        dtype: Type of the model's parameters.
    """

    name: str
    terms: tuple[str | float | Tensor, ...]
    options: Options
    forms: tuple[Form, ...]
    owner: str | None
    dtype: torch.dtype

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that are read."""
        return tuple(term for term in self.terms if isinstance(term, str))

    @property
    def rank(self) -> int | None:
        """Dimensions of the values, if known."""
        return next((form.rank for form in self.forms if form.rank is not None), None)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A layer whose weight, and bias, the model computes from its parameters and constants: no state holds them."""

    node: Affine
    weight: Tensor
    bias: Tensor


Made: TypeAlias = GraphNode | Computed | None
