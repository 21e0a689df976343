"""Large products of linear layers on a CPU, by what its processor is fastest at.

Which arithmetic that is was measured (``benchmarks/snn_training.py``, ``benchmarks/event_training.py``). It depends on
the processor and on what is multiplied alone, so that a run on one machine always gives the same bits.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.neurons.events import EventLayer, density

LARGE = 2**24
"""Multiply-accumulates of a product from which other ways than PyTorch's are worth it, if no side is narrow."""

NARROW = 64
"""Rows or columns below which other layouts cost more than they save."""


class Processor(NamedTuple):
    """What a processor is fast at.

    Attributes:
        onednn: Whether oneDNN multiplies faster than MKL, by more than the copies that it takes.
        most_events: Part of the left side that isn't zero up to which adding the weights of the others up is faster.
    """

    onednn: bool
    most_events: float

    @classmethod
    def of(cls, description: str) -> Processor:
        """Choose by what Linux says of a processor, ``/proc/cpuinfo``.

        MKL uses vectors of 256 bits on AMD's processors. On those of family 26 oneDNN takes half of its time, on those
        of family 25 as long; there events, which use vectors of 512 bits where there are any, pay to 25 %.
        """
        fields = dict(re.findall(r"^(vendor_id|cpu family|flags)\s*: (.*)$", description, re.MULTILINE))
        amd, family = fields.get("vendor_id") == "AuthenticAMD", int(fields.get("cpu family", 0))
        wide = "avx512f" in fields.get("flags", "").split()
        return cls(onednn=amd and family >= 26, most_events=0.2 if amd and family == 25 and wide else 0.08)


@functools.cache
def processor() -> Processor:
    """Return what this machine's processor is fast at."""
    file = Path("/proc/cpuinfo")
    found = Processor.of(file.read_text(encoding="utf-8") if file.exists() else "")
    return found if torch.backends.mkldnn.is_available() else found._replace(onednn=False)  # type: ignore[no-untyped-call]


def is_large(left: Tensor, right: Tensor) -> bool:
    """Tell whether :func:`product` takes ``left @ right.T``, and is worth it."""
    if len(left) * right.numel() < LARGE or min(len(left), *right.shape) < NARROW:
        return False
    fits = all(value.device.type == "cpu" and value.dtype == torch.float32 for value in (left, right))
    return fits and not torch.is_autocast_enabled("cpu")  # which would round one side alone


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ right.T + bias``; where the left side is mostly zeros, these are left out.

    Args:
        left: Shape ``[M, K]``, float32 on the CPU.
        right: Shape ``[N, K]``.
        bias: Shape ``[N]``.
    """
    found: Tensor = _Product.apply(left, right, bias, True)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    """``left @ right.T + bias``, whose gradients are products of the same kind, but dense."""

    @staticmethod
    def forward(left: Tensor, right: Tensor, bias: Tensor | None, spikes: bool) -> Tensor:
        most = processor().most_events if spikes else 0.0
        if spikes and density(left) <= most:
            start = right.new_zeros(len(right)) if bias is None else bias.detach()
            found = EventLayer.of(right.detach()).apply(left.detach(), start, most)
            if found is not None:
                return found
        if not processor().onednn:
            return functional.linear(left, right, bias)
        outputs = functional.linear(left.to_mkldnn(), right).to_dense()
        return outputs if bias is None else outputs.add_(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        of_left = _Product.apply(gradient, right.T, None, False) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_right = _Product.apply(gradient.T, left.T, None, False) if ctx.needs_input_grad[1] else None  # type: ignore[no-untyped-call]
        return of_left, of_right, gradient.sum(0) if ctx.needs_input_grad[2] else None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Tensor, int]:
        return torch.vmap(functional.linear, in_dims=in_dims[:3])(*values[:3]), 0
