"""The auditor's command, from a recorded run to a page that a browser shows."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import cli

SETTING = """
run: {name: NAME, rounds: 2}
data: {clients: 900, minimum_samples: 1}
model: {batch_norm: false}
training: {epochs: 1, batch_size: 2, momentum: 0, weight_decay: 0}
conversion: {steps: 8}
strategy: {fraction_train: 0.00334, spiking: SPIKING}
evaluation: {clients: false, images: 20}
audit: {record: true, ground_truth: true}
"""
ATTACKS = ["--attack", "inverting_gradients", "--attack", "reconverted_initial", "--attack", "closed_form"]


def invoke(monkeypatch, capsys, *arguments):
    """Run the command as a person would; return its exit status and what it wrote."""
    monkeypatch.setattr("sys.argv", ["snnfl", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, spiking in (("s", "true"), ("p", "false")):
        path = folder / f"{name}.yaml"
        path.write_text(SETTING.replace("NAME", name).replace("SPIKING", spiking))
        result = CliRunner().invoke(cli.app, ["run", str(path), f"run.directory={folder}"])
        assert result.exit_code == 0, result.output
    command = ["audit", str(folder / "s"), str(folder / "p"), *ATTACKS, "--iterations", "30", "--round", "1"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    return folder


def test_the_scorecard_says_everything_of_each_attack(runs):
    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    attacked = {(entry["run"], entry["attack"]) for entry in entries if "noise_multiplier" not in entry}
    assert attacked == {
        ("s", "closed_form"),
        ("s", "reconverted_initial"),
        ("s, plain twins", "closed_form"),
        ("s, plain twins", "inverting_gradients"),
        ("p", "closed_form"),
        ("p", "inverting_gradients"),
    }
    for entry in entries:
        if entry["attack"] == "closed_form":
            assert entry["verdict"] == "refused"
            assert "isn't linear" in entry["refusal"]
            continue
        assert entry["victims"] == 3
        assert entry["interval"][0] < entry["value"] < entry["interval"][1]
        assert entry["floor"]["name"] in ("grey", "mean_image", "mean_colour")
        assert entry["verdict"] in ("leaks", "unclear", "nothing seen")
        assert "architecture" in entry["threat_model"]["facts"]
        assert entry["threat_model"]["who"] == "honest-but-curious server"
        if "noise_multiplier" not in entry:
            assert (entry["control"] is not None) == (entry["attack"] == "reconverted_initial")
            points = [point["iteration"] for point in entry["curve"]]
            assert points == list(range(30))
            assert entry["curve"][-1]["psnr"]["value"] == pytest.approx(entry["value"])
    rows = list(csv.DictReader((runs / "s/audit/scorecard.csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == [e["attack"] for e in entries if "noise_multiplier" not in e]
    for run in ("s, plain twins", "p"):
        noise = [entry["noise_multiplier"] for entry in entries if "noise_multiplier" in entry and entry["run"] == run]
        assert noise == sorted(noise)
        assert len(noise) == 4


def test_the_same_numbers_are_files_for_other_programs(runs):
    def rows(name):
        return list(csv.DictReader((runs / "s/audit" / name).read_text().splitlines()))

    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    entry = next(entry for entry in entries if entry["attack"] == "reconverted_initial")
    curve = [row for row in rows("curves.csv") if (row["run"], row["attack"]) == ("s", "reconverted_initial")]
    assert [float(row["psnr"]) for row in curve] == pytest.approx(
        [p["psnr"]["value"] for p in entry["curve"]], rel=1e-3
    )
    biases = rows("biases.csv")
    assert {row["guess"] for row in biases} == {"as received", "zero", "inferred", "initial weights"}
    first = [row for row in biases if row["guess"] == "initial weights"]
    assert {float(row["distance_before_training"]) for row in first} == {0.0}  # all start from the seed's
    assert all(float(row["distance"]) > 0 for row in first)
    noise = [row for row in rows("noise.csv") if row["run"] == "p"]
    assert [float(row["z"]) for row in noise] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert all(row["attack"] == "inverting_gradients" and float(row["psnr"]) > 0 for row in noise)
    thresholds = rows("thresholds.csv")
    assert {row["run"] for row in thresholds} == {"s"}
    assert len({row["layer"] for row in thresholds}) * 3 == len(thresholds)
    assert all(float(row["threshold"]) > 0 and row["attacks"] == "False" for row in thresholds)
    assert {row["detector"] for row in rows("detectors.csv") if row["run"] == "p"} == {
        "norm",
        "cosine",
        "krum",
        "hdbscan",
    }


def test_a_plain_twin_is_attacked_as_its_client_would_have_been(runs):
    """The twins of the first round's clients are the very clients of the plain run."""
    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    twin, plain = (
        next(e for e in entries if e["attack"] == "inverting_gradients" and e["run"] == run)
        for run in ("s, plain twins", "p")
    )
    assert twin["value"] == pytest.approx(plain["value"], abs=0.3)
    assert twin["victims"] == plain["victims"]


def test_the_report_needs_nothing_else(runs):
    text = (runs / "s/audit/report.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert loaded
    assert all(target.startswith("data:") for target in loaded)
    assert "<script" not in text
    assert "@import" not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_shows_the_report(runs, tmp_path):
    page, picture = runs / "s/audit/report.html", tmp_path / "page.png"
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [*browser, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    text = html.unescape(re.sub(r"<[^>]+>", " ", shown.stdout))
    for wanted in (
        "Scorecard",
        "Who attacked, what leaked",
        "reconverted_initial",
        "Private biases",
        "Noise for scale",
    ):
        assert wanted in text
    entry = next(e for e in json.loads((runs / "s/audit/scorecard.json").read_text()) if e["value"] is not None)
    assert f"{entry['value']:.1f}" in text
    subprocess.run([*browser, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_damaged_recording_is_one_line_that_names_the_file(runs, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "damaged"
    shutil.copytree(runs / "p", copy)
    path = next((copy / "audit/recording").rglob("received.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    status, said = invoke(monkeypatch, capsys, "audit", copy)
    assert status == 2
    assert str(path) in said.replace("\n", "")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--deny", "learning_rat"], ["learning_rat", "did you mean 'learning_rate'"]),
        (["--attack", "dgl"], ["'dgl'", "did you mean 'dlg'"]),
        (["--round", "7"], ["no recorded update"]),
    ],
)
def test_a_mistake_is_one_line(runs, monkeypatch, capsys, arguments, parts):
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", *arguments)
    assert status == 2
    assert all(part in said for part in parts)


def test_compiling_without_a_compiler_is_one_line(runs, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", "--compile")
    assert status == 2
    assert "--compile: /no/such/compiler isn't here" in said


def test_a_folder_without_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    status, said = invoke(monkeypatch, capsys, "audit", tmp_path)
    assert status == 2
    assert "give the folder of a run" in said


@pytest.fixture
def own_registry(monkeypatch):
    """Attacks that a test registers are forgotten after it."""
    from snnfl.attacks import registry

    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))


def example() -> str:
    """Return the plug-in that docs/audit.md shows."""
    text = (Path(__file__).parents[2] / "docs/audit.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


@pytest.mark.usefixtures("own_registry")
def test_the_documented_plugin_is_an_attack_as_any_other(runs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "inverting_l2.py"
    path.write_text(example())
    command = ["audit", runs / "p", "--plugin", path, "--attack", "inverting_l2", "--iterations", "3", "--no-controls"]
    command += ["--round", "1"]
    status, said = invoke(monkeypatch, capsys, *command, "--output", tmp_path / "out")
    assert status == 0, said
    (entry,) = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert (entry["attack"], entry["victims"], entry["refusal"]) == ("inverting_l2", 3, None)
    denied = [*command, "--deny", "loss", "--output", tmp_path / "denied"]
    status, said = invoke(monkeypatch, capsys, *(a for a in denied if a not in ("--plugin", path)))
    (entry,) = json.loads((tmp_path / "denied/scorecard.json").read_text())
    assert entry["refusal"] == "inverting_l2: needs loss, which the threat model denies"


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("source", "words"),
    [(None, "no such file"), ("x = 1", "registers no attack"), ("1 / 0", "ZeroDivisionError: division by zero")],
)
def test_a_plugin_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, source, words):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    status, said = invoke(monkeypatch, capsys, "audit", tmp_path, "--plugin", path)
    assert status == 2
    assert words in said
    assert "Traceback" not in said
