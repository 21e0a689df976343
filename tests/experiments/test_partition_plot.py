import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments import partition_plot
from experiments.partition_plot import plot_partition
from snnfl.config import ConfigError


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def draw(tmp_path, clients, classes):
    path = tmp_path / "new" / "plot.svg"
    names = [f"class {number}" for number in range(classes)]
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text, not as outlines
        plot_partition(torch.arange(clients * classes).view(clients, classes), names, "who holds what", path)
    return texts(path)


def test_bars_stack_up_to_each_clients_samples():
    counts = torch.tensor([[5, 0, 2], [1, 1, 1]])
    axes = Figure().add_subplot()
    partition_plot._bars(axes, counts, ["a", "b", "c"])
    widths = np.array([[bar.get_width() for bar in group] for group in axes.containers]).T
    starts = np.array([[bar.get_x() for bar in group] for group in axes.containers]).T
    assert widths.tolist() == counts.tolist()
    assert starts.tolist() == [[0, 5, 5], [0, 1, 2]]


def test_twenty_classes_have_twenty_colours():
    axes = Figure().add_subplot()
    partition_plot._bars(axes, torch.ones(1, 20, dtype=torch.int64), [""] * 20)
    assert len({group[0].get_facecolor() for group in axes.containers}) == 20


def test_the_heat_map_shows_the_counts():
    figure = Figure()
    axes = figure.add_subplot()
    counts = torch.arange(75).view(3, 25)
    partition_plot._heat_map(figure, axes, counts)
    assert axes.images[0].get_array().tolist() == counts.tolist()


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (60, 20)])
def test_up_to_twenty_classes_are_named_and_each_client_numbered(tmp_path, clients, classes):
    found = draw(tmp_path, clients, classes)
    assert {"who holds what", "client", *(f"class {number}" for number in range(classes))} <= set(found)
    assert {str(number) for number in range(clients)} <= set(found)


def test_more_classes_become_a_heat_map_without_a_legend(tmp_path):
    found = draw(tmp_path, 60, 200)
    assert {"who holds what", "client", "label", "training samples", "59"} <= set(found)
    assert not any(text.startswith("class ") for text in found)


def test_the_suffix_decides_the_format(tmp_path):
    counts = torch.tensor([[3, 4]])
    plot_partition(counts, ["a", "b"], "", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
    for name in ("plot.doc", "plot"):
        with pytest.raises(ConfigError, match=r"unknown picture format .* use .svg or .png"):
            plot_partition(counts, ["a", "b"], "", tmp_path / name)
