from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ATTACKS = {
    "epochs", "event_recovery", "exact_batches", "imprint", "labels", "legacy_masks", "membership", "native_matching",
    "priors", "secure_forms", "secure_list", "sequence_recovery", "side_channel", "time_left", "uploads",
}  # fmt: skip
"""What attacks find or cost, by the commands that docs/ names: no times, and no bars."""
OTHERS = {
    "harness",
    "draw_accuracy",
    "pfl_research",
    "spiking_libraries",
    "deployment_load",
    "event_training",
    "turns",
    *ATTACKS,
}
"""What benchmarks share, one that takes the whole machine for minutes, and those without bars: not of `make bench`."""
NAMES = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - OTHERS)


def run(name: str, *arguments: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, str(BENCHMARKS / f"{name}.py"), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_writes_down_what_it_prints(name, tmp_path, forked):
    document = tmp_path / "performance.md"
    begin, end = f"<!-- begin {name}.py: generated, don't edit -->", f"<!-- end {name}.py -->"
    document.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    done = run(name, "--json", str(tmp_path / "results.json"), "--markdown", str(document), python=forked / "python")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written) == [name]
    assert any(result["bar"] for result in written[name]["results"])
    for result in written[name]["results"]:
        assert result["name"] in done.stdout
        assert f"| {result['name']} |" in document.read_text()
    assert document.read_text().startswith("before\n")
    assert document.read_text().endswith("\nafter\n")
    assert "old" not in document.read_text().splitlines()


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness")


def test_benchmarks_share_a_file_of_results(harness, monkeypatch, tmp_path):
    """``make bench BENCH_ARGS="--json FILE"`` gives one file to all of them, and again on the next day."""
    file = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(file)])
    for name, value in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        harness.main(name, lambda options, value=value: [harness.Result(name="n", samples=(value,), unit="s")])
    found = {
        name: [result["value"] for result in each["results"]] for name, each in json.loads(file.read_text()).items()
    }
    assert found == {"one": [3.0], "two": [2.0]}
    file.write_text("[1]")
    with pytest.raises(SystemExit, match=r"holds no results of benchmarks; move it away"):
        harness.main("one", lambda options: [])
    assert file.read_text() == "[1]"


def test_make_bench_runs_all_of_them():
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    (line,) = [line for line in makefile.splitlines() if line.startswith("BENCHMARKS := ")]
    assert sorted(line.removeprefix("BENCHMARKS := ").split()) == NAMES


@pytest.mark.slow
def test_a_document_without_markers_is_an_error_that_says_what_to_write(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("nothing\n")
    done = run("max_pooling", "--markdown", str(document))  # the quickest
    assert done.returncode == 1
    assert "begin max_pooling.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_announced_time_left_is_compared_with_what_was_left(monkeypatch):
    """Timing settings takes 2 s, then 8 are needed: after 2, 4 and 6 of these."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    told = importlib.import_module("time_left").lines([(2.0, 9.0), (4.0, 3.0), (5.0, 6.0), (8.0, 4.0)], 10.0)
    assert told == [
        "after 25%: 3 s announced, 6 s were left: 0.50",
        "after 50%: 6 s announced, 5 s were left: 1.20",
        "after 75%: 4 s announced, 2 s were left: 2.00",
    ]
