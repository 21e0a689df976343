"""What a valid update looks like, and the check of everything that a client sends.

An update is hostile input. It is decoded without pickle, and only after its header and size have been compared with
what the model allows; it enters an aggregate only if names, shapes, types and ranges are exactly the expected ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray
from torch import Tensor

from snnfl import npy
from snnfl.protocol import (
    ACCURACY,
    ARRAYS,
    CONTROL,
    EXAMPLES,
    LOCAL_STEPS,
    LOSS,
    METRICS,
    RECEIVED_LOSS,
    SECURE,
    SNN_ACCURACY,
)
from snnfl.training.local import MAXIMUM_VALUE
from snnfl.updates import CODES, ArraySpec, Packing

NOTHING: Mapping[str, Tensor] = {}

MAXIMUM_EXAMPLES = 10**9
"""The bound where a spec names none."""


class UpdateRefused(ValueError):
    """A reply that doesn't fit; says in one line what was expected and what was found."""


@dataclass(frozen=True, kw_only=True)
class UpdateSpec:
    """Every array by name, none where weights don't travel, and the metrics that come with them.

    Attributes:
        arrays: Exactly these, be they sent as they are or packed.
        packing: How they are packed; ``None`` if they aren't.
        control: Exactly these in a further record (SCAFFOLD), which no reply has if there are none.
        metrics: Exactly these.
        scales: Of the ANN's arrays at the start (:func:`~snnfl.updates.scale_of`); 1 for those that aren't named.
        examples: Most training examples that a client may claim: more than anyone holds would drown the others in an
            average that weighs by examples.
        test_examples: Most test examples, likewise.
        steps: How many optimiser steps a client with so many training examples takes; ``None`` if any number will do.
    """

    arrays: Mapping[str, ArraySpec]
    metrics: frozenset[str]
    control: Mapping[str, ArraySpec] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    examples: int = MAXIMUM_EXAMPLES
    test_examples: int = MAXIMUM_EXAMPLES
    steps: Callable[[int], int] | None = None
    packing: Packing | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """A checked update: its arrays, its metrics, and the number of examples that weighs it in an average.

    ``received`` is what travelled: the same arrays, or packed ones. Both may be views of the bytes that were received:
    read them, never write to them. While a round is aggregated, ``state`` holds the ANN's arrays that follow from them.
    ``control`` is how the client's control variate changed, in SCAFFOLD.
    """

    arrays: dict[str, Tensor]
    metrics: dict[str, float]
    received: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] | None = None
    control: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Number of training samples that the client claims."""
        return int(self.metrics[EXAMPLES])


def check_update(message: Message, spec: UpdateSpec, sent: Mapping[str, Tensor] = NOTHING) -> Update:
    """Decode a reply and check it against what the model allows.

    Args:
        message: The reply.
        spec: What the model allows.
        sent: What the server had sent, from which packed updates differ.

    Raises:
        UpdateRefused: For a missing or surplus record, array or metric, a wrong shape, type, size or serialisation,
            a value that isn't finite or out of range, or an absurd number of examples.
    """
    content: Mapping[str, Any] = _content(message)
    if not spec.arrays:
        return Update(arrays={}, metrics=check_metrics(message, spec.metrics, spec.examples))
    kinds = {ARRAYS: ArrayRecord, METRICS: MetricRecord} | ({CONTROL: ArrayRecord} if spec.control else {})
    if content.keys() != kinds.keys() or not all(isinstance(content[name], kind) for name, kind in kinds.items()):
        raise UpdateRefused(f"expected the records {' and '.join(map(repr, kinds))}, found {_names(content)}")
    metrics = _check_metrics(content[METRICS], spec.metrics, spec.examples)
    _check_steps(metrics, spec)
    wanted = spec.arrays if spec.packing is None else spec.packing.specs
    received = _decode_all(ARRAYS, content[ARRAYS], wanted)
    return Update(
        arrays=received if spec.packing is None else _unpacked(spec.packing, received, sent),
        received=received,
        metrics=metrics,
        control=_decode_all(CONTROL, content[CONTROL], spec.control) if spec.control else {},
    )


def check_metrics(message: Message, names: frozenset[str], examples: int = MAXIMUM_EXAMPLES) -> dict[str, float]:
    """Check the metrics of a reply that carries nothing else.

    Args:
        message: The reply.
        names: Of the metrics, no more and no fewer.
        examples: Most examples that a client may claim.

    Raises:
        UpdateRefused: As :func:`check_update`.
    """
    content = _content(message)
    metrics = content.get(METRICS)
    if not isinstance(metrics, MetricRecord) or len(content) != 1:
        raise UpdateRefused(f"expected the record '{METRICS}', found {_names(content)}")
    return _check_metrics(metrics, names, examples)


def array_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's serialised arrays, keys and shares: what travels, less the framing."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    secure = content.get(SECURE)
    fields = secure.values() if isinstance(secure, ConfigRecord) else ()
    told = [item for field in fields for item in (field if isinstance(field, list) else [field])]
    return sum(len(array.data) for record in records for array in record.values()) + sum(
        len(item) for item in told if isinstance(item, bytes)
    )


def one_line(text: str, limit: int = 300) -> str:
    """Make what a client wrote fit for a log: one line of printable characters, no terminal commands."""
    line = " ".join(text[:limit].split())
    return "".join(character if character.isprintable() else "?" for character in line)


def _content(message: Message) -> RecordDict:
    if not message.has_content():
        raise UpdateRefused("expected content, found none")
    return message.content


def _decode_all(record: str, arrays: ArrayRecord, specs: Mapping[str, ArraySpec]) -> dict[str, Tensor]:
    prefix = "" if record == ARRAYS else f"{record} "
    _check_names(f"{prefix}array", arrays.keys(), specs.keys())
    return {name: _decode(f"{prefix}{name}", arrays[name], spec) for name, spec in specs.items()}


def _unpacked(packing: Packing, received: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read what a client packed, and check what comes out: codes and scales in their range may give what is in none."""
    try:
        arrays = packing.decode(received, sent)
    except ValueError as error:
        raise UpdateRefused(f"{CODES}: {error}") from None
    for name, spec in packing.format.specs.items():
        if (mistake := spec.mistake(arrays[name])) is not None:
            raise UpdateRefused(f"{name}: unpacked it {mistake}")
    return arrays


def _decode(name: str, array: Array, spec: ArraySpec) -> Tensor:
    try:
        values = read_array(array, spec.shape, str(spec.dtype).removeprefix("torch."))
    except Exception as error:  # whatever a crafted header makes NumPy raise
        raise UpdateRefused(f"{name}: {one_line(str(error)) or type(error).__name__}") from None
    tensor = npy.as_tensor(values)  # fresh memory for all replies of a round would cost more than checking them
    if (mistake := spec.mistake(tensor)) is not None:
        raise UpdateRefused(f"{name}: {mistake}")
    return tensor


def read_array(array: Array, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """Decode an array whose header is right: NumPy allocates what a header claims before it looks for the values.

    Raises:
        Exception: Whatever a crafted header makes NumPy raise.
    """
    if (array.dtype, array.shape, array.stype) == (kind, shape, SType.NUMPY):
        values = npy.loaded(array.data, shape, np.dtype(kind))
        if values is not None:
            return values
    stream = io.BytesIO(array.data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not in the format that numpy.save writes")
    found, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=npy.HEADER_BYTES)
    if found != shape or dtype != np.dtype(kind):
        raise ValueError(f"expected {kind}{list(shape)}, found {dtype}{list(found)}")
    if (array.dtype, array.shape) != (kind, shape):
        raise ValueError(f"declared as {array.dtype[:20]}{list(array.shape[:8])}, but holds {kind}{list(shape)}")
    if (size := len(array.data) - stream.tell()) != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{size} bytes instead of {math.prod(shape)} {kind} values")
    return np.ascontiguousarray(array.numpy())


def _check_metrics(metrics: MetricRecord, names: frozenset[str], most: int) -> dict[str, float]:
    _check_names("metric", metrics.keys(), names)
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, list) or not abs(value) <= MAXIMUM_VALUE:
            found = f", found {value:g}" if isinstance(value, float) else ""  # an integer may be too long to be shown
            hint = "; if its client is honest, its training has diverged" if name == LOSS else ""
            raise UpdateRefused(f"metric {name}: expected one number within ±{MAXIMUM_VALUE:g}{found}{hint}")
        checked[name] = float(value)
    for name in (ACCURACY, SNN_ACCURACY):
        if not 0 <= checked.get(name, 0.0) <= 1:
            raise UpdateRefused(f"metric {name}: expected 0 to 1, found {checked[name]:g}")
    if checked.get(RECEIVED_LOSS, 0.0) < 0:  # a power of it is a weight
        raise UpdateRefused(f"metric {RECEIVED_LOSS}: expected no negative number, found {checked[RECEIVED_LOSS]:g}")
    examples = checked[EXAMPLES]
    if not 1 <= examples <= most or examples != int(examples):
        raise UpdateRefused(f"{EXAMPLES}: expected a whole number from 1 to {most}, found {examples:g}")
    return checked


def _check_steps(metrics: Mapping[str, float], spec: UpdateSpec) -> None:
    """Refuse a number of steps that the claimed examples don't give: an update is divided by it (FedNova)."""
    if (steps := metrics.get(LOCAL_STEPS)) is None:
        return
    expected = None if spec.steps is None else spec.steps(int(metrics[EXAMPLES]))
    if expected is not None and steps != expected:
        reason = f"expected {expected}, as {metrics[EXAMPLES]:g} examples give, found {steps:g}"
        raise UpdateRefused(f"metric {LOCAL_STEPS}: {reason}")
    if steps < 1 or steps != int(steps):
        raise UpdateRefused(f"metric {LOCAL_STEPS}: expected a whole number from 1, found {steps:g}")


def _check_names(kind: str, found: object, expected: object) -> None:
    missing, surplus = set(expected) - set(found), set(found) - set(expected)  # type: ignore[call-overload]
    if missing or surplus:
        what = f"{kind} {min(missing)!r} is missing" if missing else f"{kind} {min(surplus)[:80]!r} is unknown"
        raise UpdateRefused(f"{what} ({len(missing)} missing, {len(surplus)} unknown)")


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(repr(name[:40]) for name in list(content)[:5]) or "none"
