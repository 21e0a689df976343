"""Samples of every kind become pictures that stand in the page itself."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.audit.pictures import shown, summed


def decoded(markup):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1]))))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("images", (3, 8, 8)), ("events", (4, 2, 8, 8)), ("events", (4, 9)), ("audio", (6, 5)), ("series", (9, 3)),
     ("table", (4,))],
)  # fmt: skip
def test_each_kind_has_a_picture_that_depends_on_the_sample(kind, shape):
    first, second = (decoded(shown(kind, torch.full(shape, 0.5) * place)) for place in (0, 1))
    one = torch.zeros(shape)
    one.view(-1)[0] = 1
    assert (decoded(shown(kind, one)) != first).any()
    assert first.shape == second.shape


def test_events_of_two_channels_have_two_colours():
    events = torch.zeros(3, 2, 2, 2)
    events[0, 0, 0, 0] = events[2, 1, 1, 1] = 1
    colours = summed(events)
    assert colours[:, 0, 0].tolist() == [1, 0, 0]
    assert colours[:, 1, 1].tolist() == [0, 0, 1]
    assert colours[:, 0, 1].tolist() == [1, 1, 1]


def test_low_bands_of_sound_are_below():
    sound = torch.zeros(6, 5)
    sound[2, 0] = 1
    pixels = decoded(shown("audio", sound))
    assert pixels.shape == (5, 6)
    assert pixels[4, 2] == 255
