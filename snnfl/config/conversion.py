"""How an ordinary network becomes a spiking one, and how that is simulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from snnfl.config.declaration import ConfigError, answers_nearest, check_options, option

FEW_STEPS = 32
"""Below, the preset ``fast`` has neurons that take spikes back and fire in bursts."""


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """How a client turns its ANN into a spiking network (SNFL, Algorithm 1, ANN-TO-SNN).

    The defaults are the paper's mode. For few time steps there is :meth:`fast`; in a YAML file it is written out as
    ``conversion: {steps: 32, thresholds: channel_mmse, initial_potential: half, readout: second_half}``.

    Raises:
        ConfigError: If an option is none of its choices or out of its range, without effect beside the others, or
            potentials are calibrated that change steps that aren't read.
    """

    steps: int = option(32, low=1, doc="simulation length T")
    thresholds: Literal["layer_mmse", "channel_mmse", "layer_max", "percentile"] = option(
        "layer_mmse",
        doc="one per layer (the paper) or per channel, by grid search of the MMSE; largest activation; its percentile",
    )
    candidates: int = option(95, low=1, high=99, doc="thresholds that the MMSE search tries: max * (1 - 0.01 i)")
    percentile: float = option(99.9, above=0.0, high=100.0, doc="percentage of a layer's activations, zeros included")
    calibration: Literal["none", "bias", "potential", "bias_potential", "time_bias"] = option(
        "bias",
        doc="what absorbs the conversion error: biases (eq. 6), initial potentials, both, or a bias per time step",
    )
    initial_potential: Literal["zero", "half", "drip"] = option(
        "zero", doc="membrane potential at t=0: zero (the paper), half a threshold, or half of one dripped in over T"
    )
    readout: Literal["all", "second_half"] = option(
        "all",
        doc="steps that the logits are the mean of, and over which biases are calibrated: all (the paper), or the last "
        "T - T // 2, when rates have settled",
    )
    signed: bool = option(
        False, doc="whether a neuron whose potential is negative takes back a spike that it fired (docs/few-steps.md)"
    )
    burst: int = option(1, low=1, high=16, doc="spikes that a neuron may fire, or take back, in one step")
    two_sided: bool = option(
        False, doc="of bursts: whether a neuron's spikes are never more than the steps so far, as without bursts"
    )
    correction: Literal["none", "residual", "offset"] = option(
        "none",
        doc="what steps before the simulation are for: silence neurons with a negative residual potential (SRP), or "
        "offset each neuron's start by the spikes that it lacked or had too many (COS)",
    )
    correction_steps: int | None = option(
        None, low=1, doc="how many steps come before the simulation, beside `steps`, which pay for them; null: steps"
    )
    data: Literal["private", "synthetic"] = option(
        "private",
        doc="what calibrates: images of the client's own, or ones that it makes of its just trained network alone "
        "(docs/private-snn.md)",
    )
    synthesis_iterations: int | None = option(None, low=1, doc="synthetic: steps of Adam per image; null: 100")
    calibration_images: int = option(128, low=1, doc="images that calibrate")
    calibration_steps: int | None = option(
        None, low=1, doc="length that thresholds and calibration are computed for; null: steps"
    )
    max_bytes: int = option(
        800_000_000, low=1, doc="ceiling of the conversion's memory: activations, spike trains, currents and buffers"
    )
    max_pooling: Literal["gated", "average"] = option(
        "gated", doc="what becomes of it: the spikes of the neuron that fired most so far pass; or average pooling"
    )
    minimum_scale: float = option(
        1e-6, above=0.0, doc="|gamma/sigma| below which a channel's weight cannot be recovered from the folded one"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.readout == "second_half" and self.calibration in ("potential", "bias_potential"):
            raise ConfigError(
                f"readout=second_half: calibration={self.calibration} changes the first steps "
                "alone, which are not read; use calibration=bias"
            )
        for mistake in self._without_effect():
            raise ConfigError(mistake)

    def _without_effect(self) -> Iterator[str]:
        if self.two_sided and self.burst == 1:
            yield "two_sided=true: without bursts no neuron fires more than once a step; leave it out, or set burst=2"
        if self.calibration == "time_bias" and (self.signed or self.burst > 1):
            yield (
                "calibration=time_bias: is defined for neurons that fire once a step; use calibration=bias with signed "
                "spikes or bursts"
            )
        if self.synthesis_iterations is not None and self.data != "synthetic":
            yield (
                f"synthesis_iterations={self.synthesis_iterations}: data={self.data} makes no images; leave it out, or "
                "set data=synthetic"
            )
        if self.correction_steps is not None and self.correction == "none":
            yield f"correction_steps={self.correction_steps}: correction=none has none; leave it out"

    @classmethod
    def fast(cls, steps: int = 32, **options: Any) -> ConversionConfig:
        """Return the options that are near the ANN in few steps; the paper's mode needs hundreds.

        A threshold per channel, a start at half of it, and calibrated biases. The rest goes by the steps:

        - below 32, which don't suffice for rates to settle in a deep network, neurons take spikes back and fire up to
          twice a step, so that a total is soon right at any depth, and logits are the mean of all steps;
        - from 32 on, neurons are ordinary ones, as chips and other libraries have them, and logits are the mean of the
          second half, when rates have settled.

        Measured: see docs/few-steps.md. Other options may be set beside these, or in their place.
        """
        preset: dict[str, Any] = {"thresholds": "channel_mmse", "initial_potential": "half"}
        few = isinstance(steps, int) and steps < FEW_STEPS  # of another type, it is the mistake that is said
        preset |= {"signed": True, "burst": 2} if few else {"readout": "second_half"}
        return cls(**{"steps": steps, **preset, **options})

    @classmethod
    def search(cls, steps: int = 8, *, tries: int = 6, rehearse: bool = False, **options: Any) -> ConversionSearch:
        """Return options among which :func:`snnfl.convert` chooses by its calibration images.

        Args:
            steps: Simulation length T.
            tries: How many are tried at most, the most promising first: the budget, each costs a conversion.
            rehearse: Whether corrections may be among them, which take as many steps again.
            options: What all have, such as ``calibration_images``.
        """
        preset: dict[str, Any] = {"thresholds": "channel_mmse", "initial_potential": "half"}
        rows: list[dict[str, Any]] = [
            {"signed": True, "burst": 2},
            {"signed": True, "burst": 3},
            {"signed": True, "burst": 2, "two_sided": True},
            {"signed": True},
            {"signed": True, "burst": 2, "readout": "second_half"},
            {"readout": "second_half"},
            {},
        ]
        if rehearse:
            rows[1:1] = [{"correction": "offset", "signed": True, "burst": 2}, {"correction": "offset"}]
            rows += [{"correction": "residual"}]
        found = [cls(**{"steps": steps, **preset, **row, **options}) for row in rows]
        return ConversionSearch(tuple(dict.fromkeys(found))[:tries])

    @property
    def calibration_length(self) -> int:
        """Time steps that thresholds and calibration are computed for."""
        return self.steps if self.calibration_steps is None else self.calibration_steps

    def without_calibration(self) -> ConversionConfig:
        """Return the same options, but for calibration: the analog twin is then the ANN itself."""
        return dataclasses.replace(self, calibration="none", steps=1, calibration_steps=None)

    @property
    def counts(self) -> bool:
        """Whether a neuron's spikes in a step are any number: it fires in bursts, or takes spikes back."""
        return self.signed or self.burst > 1


@dataclass(frozen=True)
class ConversionSearch:
    """Ways to convert, of which :func:`snnfl.conversion.convert` takes the best on its calibration images.

    It is for one network at a time: in a federation all clients must convert alike, as a run's options say.

    Raises:
        ConfigError: If there is none.
    """

    candidates: tuple[ConversionConfig, ...]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ConfigError("tries=0: a search needs at least one way to convert; give tries=1 or more")
