"""Sound as frames: the energy of frequency bands, of equal width to the ear, over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray[Any, Any]
Filters: TypeAlias = Literal["mel", "cochlear"]

WINDOW, HOP = 0.025, 0.010
"""Seconds that a spectrum is computed of, and between two."""

FLOOR = 1e-8
"""Added to an energy before its logarithm: some 80 dB below that of a sine of full scale."""

LOWEST = 50.0
"""Centre of the lowest cochlear band, in Hz."""


@dataclass(frozen=True)
class Bands:
    """How a waveform becomes frames.

    Attributes:
        frames: Time steps T of a recording.
        bands: Features of a step.
        filters: Triangles on the mel scale, or gammatone filters on the ERB scale.
        rate: Samples per second.
    """

    frames: int
    bands: int
    filters: Filters
    rate: int

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(WINDOW * self.rate)

    @property
    def size(self) -> int:
        """Samples of a Fourier transform: twice the window or more, so that the lowest bands are wider than a bin."""
        return int(2 ** math.ceil(math.log2(2 * self.window)))

    @cached_property
    def weights(self) -> Numbers:
        """What each band takes of each bin of a power spectrum, shape ``[size // 2 + 1, bands]``."""
        bins = np.arange(self.size // 2 + 1) * self.rate / self.size
        function = mel_filters if self.filters == "mel" else cochlear_filters
        return function(bins, self.bands, self.rate / 2)

    def energies(self, wave: Numbers) -> Numbers:
        """Return the logarithms of the bands' energies over time.

        Windows of 25 ms come every 10 ms. With H of them, step t is the mean of the windows from ``floor(t H / T)`` up
        to ``floor((t + 1) H / T)``, of one at least: recordings of any length become T steps.

        Args:
            wave: ``float64`` within [-1, 1], shape ``[samples]``; a short one is continued by silence.

        Returns:
            ``float32`` of shape ``[T, bands]``.
        """
        wave = np.pad(wave, (0, max(0, self.window - len(wave))))
        windows = np.lib.stride_tricks.sliding_window_view(wave, self.window)[:: round(HOP * self.rate)]
        shape = np.hanning(self.window + 2)[1:-1]
        spectrum = np.fft.rfft(windows * shape, self.size)
        power = (spectrum.real**2 + spectrum.imag**2) / (shape.sum() / 2) ** 2
        total = np.vstack([np.zeros(self.bands), np.cumsum(power @ self.weights, axis=0)])
        places = np.arange(self.frames + 1) * len(windows) // self.frames
        starts = places[:-1]
        ends = np.maximum(starts + 1, places[1:])
        means = (total[ends] - total[starts]) / (ends - starts)[:, None]
        energies: Numbers = np.log(np.maximum(means, 0.0) + FLOOR).astype(np.float32)
        return energies


def mel_filters(frequencies: Numbers, bands: int, highest: float) -> Numbers:
    """Return triangles whose corners are equally far apart on the mel scale, from 0 to the highest frequency.

    ``mel = 2595 log10(1 + f / 700)`` (O'Shaughnessy 1987). Each is 1 at its centre and 0 at its neighbours' centres.

    Args:
        frequencies: In Hz, shape ``[bins]``.
        bands: How many.
        highest: In Hz.

    Returns:
        Shape ``[bins, bands]``.
    """
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + highest / 700), bands + 2) / 2595) - 1)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    points = frequencies[:, None]
    return np.maximum(0, np.minimum((points - left) / (centre - left), (right - points) / (right - centre)))


def cochlear_filters(frequencies: Numbers, bands: int, highest: float) -> Numbers:
    """Return the power responses of gammatone filters of order 4, their centres equally far apart on the ERB scale.

    ``|G(f)|² = (1 + ((f - c) / b)²)^-4`` with ``b = 1.019 · 24.7 (1 + 0.00437 c)``, the centres c from 50 Hz to the
    highest frequency on ``21.4 log10(1 + 0.00437 f)`` (Patterson et al. 1992; Glasberg and Moore 1990).

    Args:
        frequencies: In Hz, shape ``[bins]``.
        bands: How many.
        highest: In Hz.

    Returns:
        Shape ``[bins, bands]``.
    """
    low, high = (21.4 * np.log10(1 + 0.00437 * frequency) for frequency in (LOWEST, highest))
    centres = (10 ** (np.linspace(low, high, bands) / 21.4) - 1) / 0.00437
    widths = 1.019 * 24.7 * (1 + 0.00437 * centres)
    response: Numbers = (1 + ((frequencies[:, None] - centres) / widths) ** 2) ** -4.0
    return response


def read_wave(path: Path) -> tuple[Numbers, int]:
    """Read a WAV file: 8, 16, 24 or 32 bit, or floating point; several channels are averaged.

    Returns:
        The waveform as ``float64`` within [-1, 1], and samples per second.

    Raises:
        ValueError: If it is damaged or empty.
        OSError: If it cannot be read.
    """
    import warnings

    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about chunks that say nothing of the sound
        try:
            rate, samples = wavfile.read(path)
        except OSError:
            raise
        except Exception as error:  # a damaged file makes it raise anything
            raise ValueError(str(error) or type(error).__name__) from None
    if not len(samples):
        raise ValueError("it has no samples")
    if samples.dtype == np.uint8:
        wave = (samples.astype(np.float64) - 128) / 128
    elif samples.dtype.kind == "i":  # of 24 bits in the upper ones of 32
        wave = samples / -float(np.iinfo(samples.dtype).min)
    else:
        wave = samples.astype(np.float64)
    if not np.isfinite(wave).all():
        raise ValueError("it has samples that are no numbers")
    return (wave.mean(axis=1) if wave.ndim == 2 else wave), int(rate)


def resample(wave: Numbers, rate: int, wanted: int) -> Numbers:
    """Return a waveform at another rate, filtered so that nothing folds back."""
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    resampled: Numbers = resample_poly(wave, wanted // common, rate // common)
    return resampled
