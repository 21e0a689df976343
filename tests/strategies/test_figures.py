"""The figure of a run shows the rows, whatever is missing in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import figure, image
from matplotlib.figure import Figure

from strategies import figures

KEYS = ("server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean", "client_ann_accuracy_std")


def rows(*values: tuple[float | None, float | None, float | None, float | None]) -> list[dict[str, float | None]]:
    return [{"round": n, **dict(zip(KEYS, value, strict=True))} for n, value in enumerate(values, start=1)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figure, "Figure", Kept)
    return made


def test_the_lines_are_the_accuracies_in_percent(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = {
        "S-FedAvg": rows((0.1, 0.2, 0.3, 0.05), (None, None, None, None), (0.4, 0.5, 0.6, 0.0)),
        "FedAvg": rows((None, 0.25, 0.35, 0.1)),
    }
    figures.plot_accuracy(runs, [tmp_path / "a.png", tmp_path / "a.svg"])
    [axes] = drawn[0].axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    expected = {
        "S-FedAvg: server, SNN": ([1, 3], [10, 40]),
        "S-FedAvg: server, ANN": ([1, 3], [20, 50]),
        "S-FedAvg: clients, ANN (mean ± sd)": ([1, 3], [30, 60]),
        "FedAvg: server, ANN": ([1], [25]),
        "FedAvg: clients, ANN (mean ± sd)": ([1], [35]),
    }
    assert {name: (x, pytest.approx(y)) for name, (x, y) in expected.items()} == lines
    assert image.imread(tmp_path / "a.png").std() > 0.01
    assert "svg" in ElementTree.parse(tmp_path / "a.svg").getroot().tag


def test_a_run_without_any_measurement_is_drawn_too(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.plot_accuracy({"run": rows((None, None, None, None))}, [tmp_path / "a.png"])
    assert not drawn[0].axes[0].lines
    assert (tmp_path / "a.png").exists()
