"""Values rounded at random to codes of few bits, and codes packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor

OCTAVES = 21
"""Powers of two among the scales that are tried: values from a millionth of the largest one on decide."""


def most(bits: int) -> int:
    """Return the largest code of so many bits: codes run from its negative to it, so one of the ``2^b`` is unused.

    >>> [most(bits) for bits in (2, 4, 8)]
    [1, 7, 127]
    """
    levels: int = 2 ** (bits - 1) - 1
    return levels


def stochastic(values: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Round values to codes, up or down at random so that their expectation is the value.

    ``c = clip(floor(v / s + u), -most, most)`` with ``u`` uniform in 0..1 (Alistarh et al., "QSGD", NeurIPS 2017,
    section 3.1; at 2 bits Wen et al., "TernGrad", NeurIPS 2017, eq. 3). Of the candidates ``max|v| 2^(-k/2) / most``
    the scale ``s`` is the one that leaves least out, in the expected square, which is less than there was. With ``k =
    0`` it may be more: at 2 bits of bell-shaped values it is twice as much, and error feedback would grow for ever.

    Args:
        values: Finite, of any shape.
        bits: ``b``, at least 2.
        generator: Draws ``u``, on the device of the values.

    Returns:
        Codes from ``-most(bits)`` to ``most(bits)``, int16, and the scale ``s``, a scalar; ``s c`` are the values.
    """
    scale = _best_scale(values.abs(), bits)
    if not scale > 0:  # of zeros, and of numbers so small that the division leaves none
        return torch.zeros(values.shape, dtype=torch.int16, device=values.device), torch.zeros_like(scale)
    draw = torch.rand(values.shape, generator=generator, device=values.device)
    codes = (values / scale + draw).floor().clamp(-most(bits), most(bits))
    return codes.to(torch.int16), scale


def _best_scale(magnitudes: Tensor, bits: int) -> Tensor:
    """Return the candidate that leaves least out, by powers of two first and then by the roots beside the best one."""
    if not magnitudes.numel():
        return magnitudes.new_zeros(())
    largest = magnitudes.max() / most(bits)

    def left(factor: float) -> float:
        return left_out(magnitudes, largest * factor, bits)

    factor = min((2.0**-octave for octave in range(OCTAVES)), key=left)
    return largest * min((factor, min(1.0, factor * 2**0.5), factor * 2**-0.5), key=left)


def left_out(magnitudes: Tensor, scale: Tensor, bits: int) -> float:
    """Return the expected square of what :func:`stochastic` leaves out of values of some magnitudes with a scale."""
    if not scale > 0:
        return float(magnitudes.double().square().sum())
    inside = torch.minimum(magnitudes, most(bits) * scale)
    part = inside / scale
    part = part - part.floor()
    return float((scale**2 * part * (1 - part) + (magnitudes - inside) ** 2).sum(dtype=torch.float64))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into bytes, the first code in the lowest bits; the last byte is filled up with zeros.

    Args:
        codes: Shape ``[N]``, from ``-most(bits)`` to ``most(bits)``.
        bits: Of a code: 2, 4 or 8.

    Returns:
        ``ceil(N b / 8)`` bytes, uint8.

    >>> pack(torch.tensor([-1, 0, 1, 1, 0]), 2).tolist()
    [164, 1]
    """
    each = 8 // bits
    digits = torch.zeros(-(-len(codes) // each) * each, dtype=torch.int16, device=codes.device)
    digits[: len(codes)] = codes.to(torch.int16) + most(bits)
    places = 2 ** (bits * torch.arange(each, dtype=torch.int16, device=codes.device))
    return (digits.view(-1, each) * places).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Read codes, whoever packed them.

    Args:
        packed: ``ceil(count b / 8)`` bytes, uint8.
        bits: Of a code.
        count: Of the codes.

    Returns:
        Codes ``[count]``, int16.

    Raises:
        ValueError: For bytes of another number, or that :func:`pack` writes for no codes.
    """
    each, base = 8 // bits, 2**bits
    if packed.shape != (-(-count // each),):
        raise ValueError(f"{list(packed.shape)} bytes, and {count} codes of {bits} bits take {-(-count // each)}")
    places = base ** torch.arange(each, dtype=torch.int16, device=packed.device)
    digits = (packed.to(torch.int16)[:, None] // places % base).flatten()
    if (digits[:count] == base - 1).any():
        raise ValueError(f"holds the code {base - 1 - most(bits)}, and codes of {bits} bits end at {most(bits)}")
    if digits[count:].any():
        raise ValueError("the last byte isn't filled up with zeros")
    codes: Tensor = digits[:count] - most(bits)
    return codes
