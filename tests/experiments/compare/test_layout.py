"""A study's report as a browser lays it out: nothing is cut off, and nothing lies over something else."""

from __future__ import annotations

import shutil

import pytest
from page_layout import BROWSER, PAPER, WITHOUT, flaws

from experiments.compare.cell import run_cell
from experiments.compare.extras import NOTHING
from experiments.compare.figures import draw
from experiments.compare.records import entries
from experiments.compare.report import study_page
from experiments.compare.study import read_study
from snnfl.config import to_yaml
from strategies.run_directory import read_metrics

STUDY = """
name: wide
options: {run.rounds: 3, run.directory: DIRECTORY, training.epochs: 1, evaluation.clients: false, evaluation.images: 20,
          strategy.spiking: false}
matrix:
  algorithm:
    FedAvg: {strategy.name: fedavg}
    FedProx with a proximal term of 0.01: {strategy.name: fedprox}
    FedMedian, which withstands a few attackers: {strategy.name: fedmedian}
  data.clients: [3, 4, 5]
  training.learning_rate: [0.05, 0.1]
seeds: [0, 1]
tables:
  - {}
  - {title: By clients, rows: algorithm, columns: [data.clients, training.learning_rate]}
  - {title: Traffic, value: bytes_total, rows: [algorithm, training.learning_rate], columns: data.clients}
figures:
  - {x: round}
  - {x: data.clients, title: Clients}
  - {x: algorithm, title: Algorithms}
  - {value: accuracy, x: bytes_total, title: Points}
  - {x: round, title: One, where: {data.clients: 3, training.learning_rate: 0.1}}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A study of 36 cells and its report, all with the rounds of one: it is the layout that counts."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY.replace("DIRECTORY", str(folder)))
    study = read_study(folder / "study.yaml")
    first = study.cells[0]
    (folder / "cell.yaml").write_text(to_yaml(first.config))
    run_cell(folder / "cell.yaml", NOTHING)
    for cell in study.cells[1:]:
        shutil.copytree(first.path, cell.path)
    tables = [(view, entries(view, study.cells)) for view in study.tables]
    figures = [(view, figure) for view in study.figures if (figure := draw(view, study.cells, study.axes)) is not None]
    assert len(figures) == 5
    return study, study_page(study, study.cells, tables, figures)


@pytest.mark.skipif(BROWSER is None, reason=WITHOUT)
@pytest.mark.parametrize(("width", "printed"), [(1300, False), (PAPER, True)])
def test_nothing_is_cut_off_and_nothing_overlaps(report, tmp_path, width, printed):
    assert flaws(report[1], tmp_path, width=width, printed=printed) == []


@pytest.mark.skipif(BROWSER is None, reason=WITHOUT)
def test_what_is_cut_off_or_overlaps_is_seen(tmp_path):
    spoiled = (
        "<html><style>@media print { }</style><body><p style='width:9000px'>a</p>"
        f"<pre style='width:50px;overflow:auto'>{'b' * 99}</pre><p style='margin-top:-60px'>c</p>"
        "<svg width=9 height=9><g id='text_1'><text x=20>d</text></g></svg></body></html>"
    )
    found = flaws(spoiled, tmp_path, width=600)
    for kind in ("cut off: p# a", "scrolls: pre# b", "overlap: ", "text_1 is cut off"):
        assert any(kind in flaw for flaw in found), (kind, found)


def drawn(study, number):
    [axes] = draw(study.figures[number], study.cells, study.axes).axes
    return axes


def test_the_colour_is_the_algorithms_and_the_style_the_other_axes(report):
    """In every figure of the study, whatever of it a figure shows."""
    study, _ = report
    axes = drawn(study, 0)
    lines = dict(zip([(*c.labels.values(),) for c in study.cells[::2]], axes.get_lines(), strict=True))
    by_algorithm, by_others = {}, {}
    for (algorithm, *others), line in lines.items():
        by_algorithm.setdefault(algorithm, set()).add(line.get_color())
        by_others.setdefault(tuple(others), set()).add(line.get_linestyle() + str(line._dash_pattern))
    for group, count in ((by_algorithm, 3), (by_others, 6)):
        assert [len(looks) for looks in group.values()] == [1] * count
        assert len(set.union(*group.values())) == count
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "algorithm"
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [*by_algorithm, "", "data.clients, training.learning_rate", *map(", ".join, by_others)]
    one = drawn(study, 4)
    assert {line.get_color() for line in one.get_lines()} == set.union(*by_algorithm.values())
    assert [text.get_text() for text in one.get_legend().get_texts()] == list(by_algorithm)
    assert drawn(study, 2).get_legend().get_title().get_text() == "data.clients"


def test_a_scatter_plot_of_shares_shows_the_percentages_that_its_axis_says(report):
    study, _ = report
    axes = drawn(study, 3)
    assert axes.get_ylabel() == "accuracy (%)"
    rows = read_metrics(study.cells[0].path)
    [(x, y), *_] = axes.collections[0].get_offsets()
    assert y == pytest.approx(100 * rows[-1]["server_ann_accuracy"])
    assert x == pytest.approx(sum(row["bytes_up"] + row["bytes_down"] for row in rows))
