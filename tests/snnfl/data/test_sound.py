import math
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from snnfl.data.sound import LOWEST, Bands, cochlear_filters, mel_filters, read_wave, resample


def sine(frequency, rate=8000, seconds=0.5):
    return np.sin(2 * math.pi * frequency * np.arange(int(rate * seconds)) / rate)


def mel_by_the_formula(frequency, band, bands, highest):
    """The triangle of a band at a frequency, from the definition of the scale."""

    def mel(hertz):
        return 2595 * math.log10(1 + hertz / 700)

    def hertz(mels):
        return 700 * (10 ** (mels / 2595) - 1)

    left, centre, right = (hertz(mel(highest) * (band + step) / (bands + 1)) for step in (0, 1, 2))
    if left < frequency <= centre:
        return (frequency - left) / (centre - left)
    return (right - frequency) / (right - centre) if centre < frequency < right else 0.0


def cochlear_by_the_formula(frequency, band, bands, highest):
    """The gammatone filter of a band at a frequency, from the ERB scale's definition."""

    def number(hertz):
        return 21.4 * math.log10(1 + 0.00437 * hertz)

    place = number(LOWEST) + (number(highest) - number(LOWEST)) * band / (bands - 1)
    centre = (10 ** (place / 21.4) - 1) / 0.00437
    width = 1.019 * 24.7 * (4.37 * centre / 1000 + 1)
    return abs(1 + 1j * (frequency - centre) / width) ** -8


@pytest.mark.parametrize(
    ("filters", "formula"), [(mel_filters, mel_by_the_formula), (cochlear_filters, cochlear_by_the_formula)]
)
def test_filters_follow_their_formulas(filters, formula):
    frequencies, bands, highest = np.linspace(0, 4000, 129), 12, 4000.0
    expected = [[formula(frequency, band, bands, highest) for band in range(bands)] for frequency in frequencies]
    np.testing.assert_allclose(filters(frequencies, bands, highest), expected, atol=1e-9)


@pytest.mark.parametrize("filters", ["mel", "cochlear"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_band_hears_something(filters, rate):
    assert (Bands(50, 64, filters, rate).weights.max(axis=0) > 0.1).all()


@pytest.mark.parametrize("filters", ["mel", "cochlear"])
def test_a_higher_tone_is_loudest_in_a_higher_band(filters):
    measure = Bands(10, 40, filters, 8000)
    loudest = [measure.energies(sine(frequency)).mean(axis=0).argmax() for frequency in (200, 800, 2000, 3500)]
    assert loudest == sorted(set(loudest))
    assert 0 < measure.energies(sine(800)).max() < 1.5  # full scale, spread over a few bins of one band


def test_silence_is_the_floor():
    np.testing.assert_allclose(Bands(5, 8, "mel", 8000).energies(np.zeros(4000)), math.log(1e-8), rtol=1e-6)


@given(samples=st.integers(1, 9000), frames=st.integers(1, 60))
def test_recordings_of_any_length_become_so_many_frames(samples, frames):
    energies = Bands(frames, 6, "mel", 8000).energies(np.ones(samples))
    assert energies.shape == (frames, 6)
    assert energies.dtype == np.float32
    assert np.isfinite(energies).all()


def test_frames_are_means_of_their_windows():
    wave, rate = np.random.default_rng(0).normal(size=4000) / 9, 8000
    each = np.exp(Bands(48, 6, "mel", rate).energies(wave))  # 48 windows of 200 samples every 80
    np.testing.assert_allclose(
        np.exp(Bands(12, 6, "mel", rate).energies(wave)), each.reshape(12, 4, 6).mean(axis=1), rtol=1e-4
    )


def test_time_goes_from_the_first_frame_to_the_last():
    energies = Bands(10, 40, "mel", 8000).energies(np.concatenate([sine(300), sine(3000)])).argmax(axis=1)
    assert (energies[:4] < energies[6:].min()).all()


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint8, 128), (np.int16, 2**15), (np.int32, 2**31), (np.float32, 1), (np.float64, 1)]
)
def test_every_format_of_samples_is_read_within_one(tmp_path, dtype, scale):
    expected = sine(440) / 2
    offset = 128 if dtype == np.uint8 else 0
    wavfile.write(tmp_path / "a.wav", 8000, (expected * scale + offset).astype(dtype))
    samples, rate = read_wave(tmp_path / "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(samples, expected, atol=1.1 / min(scale, 2**20) if scale > 1 else 1e-6)


def test_24_bits_and_two_channels_are_read(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(3)
        file.setframerate(11025)
        for left, right in ((0.5, 0.0), (-1.0, -0.5)):
            file.writeframes(b"".join(struct.pack("<i", int(side * 2**23))[:3] for side in (left, right)))
    samples, rate = read_wave(tmp_path / "a.wav")
    assert rate == 11025
    assert samples.tolist() == [0.25, -0.75]


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_what_is_no_wav_file_is_an_error(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_wave(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("samples", "message"), [(np.zeros(0, np.int16), "no samples"), (np.array([np.nan], np.float32), "no numbers")]
)
def test_samples_must_be_there_and_be_numbers(tmp_path, samples, message):
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    with pytest.raises(ValueError, match=message):
        read_wave(tmp_path / "a.wav")


def test_another_rate_keeps_the_sound_and_drops_what_it_cannot_hold():
    low = resample(sine(500, rate=16000), 16000, 8000)
    np.testing.assert_allclose(low[200:-200], sine(500)[200:-200], atol=0.01)
    assert np.abs(resample(sine(6000, rate=16000), 16000, 8000)[200:-200]).max() < 0.01
    assert resample(low, 8000, 8000) is low
