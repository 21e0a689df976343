"""A page escapes what it is given, and needs nothing else."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from experiments.html import Section, drawing, glossary, listed, page, paragraph, picture, preformatted, table

HOSTILE = '<script src="http://evil.example/x.js">&'


def test_everything_is_escaped():
    figure = Figure()
    figure.add_subplot(title=HOSTILE)
    shown = table([HOSTILE], [[HOSTILE]], caption=HOSTILE)
    parts = [paragraph(HOSTILE), preformatted(HOSTILE), shown, drawing(figure, HOSTILE)]
    parts += [listed([(HOSTILE, HOSTILE)]), glossary([(HOSTILE, HOSTILE)])]
    text = page(HOSTILE, [Section(title=HOSTILE, body=Markup("").join(parts))], lead=HOSTILE)
    assert "<script" not in text
    assert text.count("&lt;script") >= 12


def test_a_verdict_has_its_colour_and_a_number_its_side():
    text = table(["a", "b"], [["nothing seen", 3], ["leaks", "3"], ["leaks: identifiable (IIP)", "leaksome"]])
    assert '<td class="nothing-seen">nothing seen</td>' in text
    assert '<td class="number">3</td>' in text
    assert '<td class="leaks">leaks</td>' in text
    assert '<td class="leaks">leaks: identifiable (IIP)</td>' in text
    assert "<td>leaksome</td>" in text


def test_a_long_name_may_go_on_in_the_next_line():
    assert "<td>reconverted_<wbr>as_<wbr>is</td>" in table(["a"], [["reconverted_as_is"]])


@pytest.mark.parametrize(("width", "side"), [(8, 96), (28, 112), (32, 96), (34, 102), (96, 96), (224, 96)])
def test_a_picture_is_large_enough_to_judge_and_small_pixels_are_of_one_size(width, side):
    assert f'width="{side}" height="{side}"' in picture(torch.zeros(3, width, width))


def test_a_picture_is_in_the_page_and_keeps_its_pixels():
    pixels = torch.tensor([[[0.0, 1.0], [0.5, 2.0]]])
    encoded = re.search(r"base64,([^\"]+)", picture(pixels))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))))
    assert shown.tolist() == [[0, 255], [128, 255]]


def test_equal_pages_are_equal_files():
    def drawn():
        figure = Figure()
        figure.add_subplot().plot([1, 2], [3, 4])
        return drawing(figure, "a line")

    plain = [re.sub(r"(#|id=\"|url\(#)[A-Za-z0-9_]+", "", drawn()) for _ in range(2)]
    assert plain[0] == plain[1]
    assert "http://" not in re.sub(r'xmlns[^=]*="[^"]+"', "", plain[0]).replace("http://www.w3.org", "")
