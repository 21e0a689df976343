"""The command ``snnfl``: what it does, and what a user's mistake looks like."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path

import pytest
from commands import in_this_process as snnfl

from experiments import cli
from snnfl import __version__ as version
from snnfl import commands
from snnfl.config import compose

DEMO = "experiments/conf/demo.yaml"
SMALL = ["run.rounds=1", "training.epochs=1", "conversion.steps=4", "data.clients=3", "data.training_images=300"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CONFIGURATIONS", cli.CONFIGURATIONS.resolve())
    monkeypatch.setenv("COLUMNS", "120")
    repository = Path.cwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(repository / "experiments")


def test_a_run_prints_a_line_per_round_and_a_table(capsys, tmp_path):
    assert snnfl("run", DEMO, *SMALL, "run.name=small", "run.rounds=2") == 0
    out = capsys.readouterr().out
    assert "S-FedAvg round 1/2  server SNN" in out
    assert "S-FedAvg round 2/2  server SNN" in out
    assert "clients' ANN" in out
    assert {path.name for path in (tmp_path / "runs" / "small").iterdir()} == {
        ".lock",
        "accuracy.png",
        "accuracy.svg",
        "checkpoints",
        "clients",
        "config.yaml",
        "environment.json",
        "final_ann.safetensors",
        "final_snn.safetensors",
        "metrics.jsonl",
    }


def test_the_demo_compares_both_algorithms(capsys, tmp_path):
    assert snnfl("demo", *SMALL) == 0
    out = capsys.readouterr().out
    rows = {
        name: json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text()) for name in ("demo", "demo_fedavg")
    }
    assert rows["demo"]["server_snn_accuracy"] is not None
    assert rows["demo_fedavg"]["server_snn_accuracy"] is None
    for row in rows.values():
        assert f"{100 * row['server_ann_accuracy']:.2f} %" in out
    assert (tmp_path / "runs" / "demo" / "comparison.png").stat().st_size > 1000
    assert snnfl("demo", *SMALL) == 0, "a second demo replaces the first"


def test_the_demo_replaces_nothing_but_a_demo(capsys, tmp_path):
    assert snnfl("run", DEMO, *SMALL, "run.name=demo_fedavg") == 0
    before = (tmp_path / "runs" / "demo_fedavg" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert snnfl("demo", *SMALL) == 2
    captured = capsys.readouterr()
    assert "run.name=demo_fedavg" in captured.err
    assert "holds an earlier run" in captured.err
    assert not captured.out, "it is found before the first of both runs"
    assert (tmp_path / "runs" / "demo_fedavg" / "metrics.jsonl").read_bytes() == before
    assert snnfl("demo", *SMALL, "run.overwrite=true") == 0


def test_no_shipped_configuration_overwrites():
    shipped = [*Path(cli.__file__).parent.glob("conf/*.yaml"), *Path(cli.__file__).parent.glob("snfl/**/*.yaml")]
    assert len(shipped) > 10
    for path in shipped:
        assert "overwrite" not in path.read_text(), path


def test_no_command_of_the_readme_meets_the_run_of_another():
    """Each has a name of its own, and none that of the demo."""
    readme = (Path(cli.__file__).parents[1] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in readme.splitlines() if "bin/snnfl run " in line]
    names = [compose(command[2], command[3:]).run.name for command in commands]
    assert len(names) > 8
    assert len({*names, "demo", "demo_fedavg"}) == len(names) + 2


def test_print_config_resolves_and_runs_nothing(capsys, tmp_path):
    assert snnfl("run", DEMO, "data.beta=0.25", "--print-config") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert compose(tmp_path / "printed.yaml") == compose(DEMO, ["data.beta=0.25"])
    assert not (tmp_path / "runs").exists()


def test_the_partition_is_drawn(capsys, tmp_path):
    assert snnfl("data", "plot", DEMO, "--output", "who.svg") == 0
    assert "who.svg: 10 clients" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "who.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "experiments/conf/dmo.yaml"], ["no such file", "demo.yaml"]),
        (["run", DEMO, "data.clints=5"], ["data.clints", "5", "clients"]),
        (["run", DEMO, "data.clients=many"], ["data.clients=many", "a whole number"]),
        (["run", DEMO, "data.clients=0"], ["data.clients=0", "at least 1"]),
        (["run", DEMO, "data.source=cifar"], ["data.source=cifar", "cifar10"]),
        (["run", DEMO, "data.source=cifar10", "data.root=/nowhere"], ["/nowhere", "snnfl data fetch cifar10"]),
        (["run", DEMO, "model.name=lenet"], ["model.name=lenet", "lenet5"]),
        (["run", DEMO, "model.name=vgg16"], ["vgg16", "32"]),
        (["run", DEMO, "strategy.name=fedavgg"], ["strategy.name=fedavgg", "fedavg"]),
        (["run", DEMO, "run.device=cuda:9"], ["run.device=cuda:9", "cpu"]),
        (["run", DEMO, "data.clients=1000"], ["data.", "minimum_samples"]),
        (["data", "fetch", "digits"], ["digits", "no download"]),
        (["data", "plot", DEMO, "--output", "x.docx"], ["x.docx", "png"]),
        (["data", "plot", DEMO, "--output", "/dev/null/x.png"], ["/dev/null/x.png", "cannot be written"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, capsys, tmp_path):
    assert snnfl(*arguments) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert all(word in captured.err for word in words), captured.err
    assert "Traceback" not in captured.err + captured.out
    assert not (tmp_path / "runs").exists()


def test_an_earlier_run_is_not_overwritten_unasked(capsys):
    assert snnfl("run", DEMO, *SMALL, "run.name=once") == 0
    capsys.readouterr()
    assert snnfl("run", DEMO, *SMALL, "run.name=once") == 2
    assert "run.overwrite=true" in capsys.readouterr().err


def test_a_run_in_which_every_client_fails_says_so(capsys, tmp_path):
    assert snnfl("run", DEMO, *SMALL, "run.name=wild", "training.learning_rate=1e20") == 1
    captured = capsys.readouterr()
    assert "lower training.learning_rate" in captured.out
    assert "no client sent a valid update" in captured.err
    row = json.loads((tmp_path / "runs" / "wild" / "metrics.jsonl").read_text())
    assert row["failed"] == 3
    assert row["server_snn_accuracy"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run"),
        (["run", "--help"], "YAML file, such as"),  # of an argument
        (["run", "--help"], "continue a run"),  # of an option
        (["data", "--help"], "Download data sets"),
        (["demo", "--help"], "digits"),
        (["export", "--help"], "a run's folder, or a file"),
    ],
)
def test_help_teaches(arguments, words, capsys):
    snnfl(*arguments)
    captured = capsys.readouterr()
    assert "Usage" in captured.out + captured.err
    assert words in captured.out + captured.err


@pytest.mark.parametrize("command", [["run"], ["export"], ["deploy", "init"], ["data", "fetch"]])
def test_help_says_what_is_required(command, capsys):
    assert snnfl(*command, "--help") == 0
    out = capsys.readouterr().out
    assert "[required]" in out
    assert "\\[" not in out


@pytest.mark.parametrize(
    ("mistyped", "meant"), [(["rnu"], "run"), (["data", "fecth"], "fetch"), (["deploy", "ini"], "init")]
)
def test_a_mistyped_command_is_answered_with_the_nearest_once(mistyped, meant, capsys):
    assert snnfl(*mistyped) == 2
    assert capsys.readouterr().err.count(f"Did you mean '{meant}'?") == 1


@pytest.mark.usefixtures("own_registries")
def test_the_data_set_of_a_plugin_is_known_to_every_command(capsys, tmp_path):
    lines = ("from snnfl.data.embedded import *", "@register('mine')", "def mine(root): return digits(root)")
    (tmp_path / "mine.py").write_text("\n".join(lines))
    assert snnfl("data", "fetch", "mine") == 2
    hint = "(one of your own needs its plug-in: --plugin FILE, or plugins: [FILE])\n"
    assert capsys.readouterr().err.endswith(hint)
    assert snnfl("data", "fetch", "mine", "--plugin", "mine.py", "--root", "here") == 2
    told = f"mine: nothing to fetch, a plug-in's data set reads its own files below {tmp_path / 'here'}\n"
    assert capsys.readouterr().err == f"snnfl: {told}"
    assert snnfl("demo", *SMALL, "data.source=mine", "--plugin", "mine.py") == 0


@pytest.mark.usefixtures("own_registries")
def test_a_run_whose_detector_and_tracker_never_worked_ends_with_status_3(capsys, tmp_path):
    lines = (
        "from snnfl import detection",
        "from strategies import tracking",
        "detection.register('mute', source='')(lambda view: 1 / 0)",
        "tracking.register('lost', package='json')(lambda *given: lambda row: 1 / 0)",
    )
    (tmp_path / "mine.py").write_text("\n".join(lines))
    options = ["--plugin", "mine.py", "detection.detectors=[mute]", "run.tracking=lost", "run.rounds=2"]
    assert snnfl("run", DEMO, *SMALL, *options, "run.name=unjudged") == 3
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("snnfl: finished, but not as configured: detector mute failed in 2 of 2 rounds; the last ")
    assert second.startswith("snnfl: finished, but not as configured: tracker lost failed in 2 of 2 rounds; the last ")


def test_the_version_is_told(capsys):
    assert snnfl("--version") == 0
    assert capsys.readouterr().out == f"snnfl {version}\n"


def test_the_module_is_the_command(capsys, monkeypatch):
    """As it is called and as it names itself."""
    printed = []
    for name in ("snnfl", str(Path(commands.__file__).with_name("__main__.py"))):
        monkeypatch.setattr("sys.argv", [name, "run", "--help"])
        with pytest.raises(SystemExit):
            commands.main() if name == "snnfl" else runpy.run_module("snnfl", run_name="__main__", alter_sys=True)
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("Usage: snnfl run ")
    assert printed[0] == printed[1]


def test_a_run_is_resumed_by_its_flag(capsys, tmp_path):
    arguments = ["run", DEMO, *SMALL, "run.name=longer"]
    assert snnfl(*arguments) == 0
    capsys.readouterr()
    assert snnfl(*arguments, "run.rounds=2", "--resume") == 0
    out = capsys.readouterr().out
    assert "longer goes on after round 1 of 2" in out.replace("\n", "")
    assert "round 1/2" not in out
    assert "S-FedAvg round 2/2" in out
    rows = (tmp_path / "runs" / "longer" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2]
    assert snnfl(*arguments, "run.rounds=2", "--resume") == 0
    assert "longer has 2 complete rounds" in capsys.readouterr().out
    assert snnfl(*arguments, "training.epochs=3", "--resume") == 2
    assert "training.epochs=3, but the run was started with training.epochs=1" in capsys.readouterr().err
