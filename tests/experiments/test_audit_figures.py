"""Nothing in the figures of a report runs into something else, however many attacks and clients there are."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from experiments.audit.figures import convergence, side_by_side, threshold_scatter
from snnfl.detection import Verdict

ATTACKS = [f"reconverted_with_a_long_name_{number}" for number in range(14)]


def entry(attack: str, updates: str) -> dict[str, object]:
    """Return what a figure reads of an attack."""
    curve = [{"iteration": n, "objective": 1 / (n + 1), "psnr": {"value": 10.0 + n}} for n in range(3)]
    return {"attack": attack, "updates": updates, "round": 1, "kind": "images", "curve": curve, "floor": {"psnr": 14.0}}


def boxes(figure: Figure) -> tuple[Bbox, list[list[Bbox]], list[Bbox]]:
    """Return the boxes of a drawn figure, of the tick labels of each of its axes, and of the legends' texts."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ticks = [
        [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
    ]  # fmt: skip
    return figure.bbox, ticks, [text.get_window_extent() for legend in figure.legends for text in legend.texts]


def apart(some: list[Bbox]) -> bool:
    return not any(first.overlaps(second) for first, second in pairwise(some))


@pytest.mark.parametrize("number", [1, 14])
def test_names_of_attacks_stay_within_the_figure_and_apart(number: int) -> None:
    entries = [entry(name, "plain twin" if place % 2 else "S-update") for place, name in enumerate(ATTACKS[:number])]
    whole, ticks, names = boxes(convergence(entries))
    assert len(names) == number + 2  # and the best guess, and success
    assert all(whole.x0 <= name.x0 and name.x1 <= whole.x1 and name.y0 >= whole.y0 for name in names)
    assert not any(one.overlaps(two) for place, one in enumerate(names) for two in names[:place])
    assert all(map(apart, ticks))


@pytest.mark.parametrize("clients", [3, 12, 250])
def test_numbers_of_clients_stay_apart(clients: int) -> None:
    draw = torch.Generator().manual_seed(0)
    verdict = Verdict(
        detector="thresholds", scores=torch.rand(clients, generator=draw),
        flagged=torch.zeros(clients, dtype=torch.bool), points=torch.rand(clients, 2, generator=draw),
    )  # fmt: skip
    partitions = range(12000, 12000 + clients)
    whole, ticks, _ = boxes(threshold_scatter(partitions, verdict, {12001}))
    assert all(map(apart, ticks))
    assert all(label.y0 >= whole.y0 for labels in ticks for label in labels)


def test_rows_of_images_have_their_titles_and_one_size() -> None:
    figure = side_by_side([("a row with a title that is longer than two of its images", [torch.rand(3, 4, 4)] * 3)] * 4)
    FigureCanvasAgg(figure).draw()
    sizes = {tuple(round(side, 3) for side in axes.get_window_extent().size) for axes in figure.axes}
    assert len(sizes) == 1
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [bool(title) for title in titles] == [True, False, False] * 4
    for axes in figure.axes[3::3]:  # a title is below the row above it
        above = figure.axes[figure.axes.index(axes) - 3].get_window_extent()
        assert not axes._left_title.get_window_extent().overlaps(above)
