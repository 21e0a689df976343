"""How commands end: the exit status, and the line that says who and why."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import in_this_process
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from clients import client_app
from experiments import cli
from experiments.deploy import DeployError
from experiments.deploy.run import check_log
from experiments.ending import BrokenOffError, NotAsConfiguredError, RunFailedError, ending, explained, keeping
from experiments.engines import EngineError, RefusedRunError
from experiments.engines.ray import RayError
from experiments.running import check_results, still_running
from snnfl.auditing.recording import RecordingError
from snnfl.config import ConfigError, compose
from strategies.lock import FolderInUseError
from strategies.resume import RunBrokenOffError
from strategies.run_directory import RunFileError, read_metrics

OPTIONS = ["data.clients=3", "model.name=mlp", "training.epochs=1", "conversion.steps=2", "data.test_images=20"]
OPTIONS += ["conversion.calibration_images=8", "run.rounds=2"]


class Failing(ClientApp):
    """The client app, of which the clients of some partitions fail at training."""

    def __init__(self, *partitions: int) -> None:
        super().__init__()
        self.app, self.partitions = client_app.app, partitions

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] in self.partitions:
            raise RuntimeError("no battery")
        return self.app(message, context)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "CONFIGURATIONS", cli.CONFIGURATIONS.resolve())
    (tmp_path / "empty.yaml").write_text("{}\n")


def test_a_client_that_fails_in_every_round_is_status_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_app, "app", Failing(1))
    assert in_this_process("run", "empty.yaml", *OPTIONS) == 3
    captured = capsys.readouterr()
    said = "partition 1 gave no valid reply to 2 of 2 train messages; the last one failed: RuntimeError: no battery"
    assert captured.err == f"snnfl: finished, but not as configured: {said}\n"
    assert "results: runs/run/" in captured.out, "it has finished all the same"
    assert in_this_process("run", "empty.yaml", *OPTIONS, "--resume") == 3, "there is nothing to do, and still"
    assert in_this_process("demo", *OPTIONS) == 3
    assert capsys.readouterr().err.count("not as configured: demo: partition 1 gave no valid reply") == 1


def test_a_last_round_without_a_valid_reply_is_status_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_this_process("run", "empty.yaml", *OPTIONS) == 0
    monkeypatch.setattr(client_app, "app", Failing(0, 1, 2))
    capsys.readouterr()
    assert in_this_process("run", "empty.yaml", *OPTIONS, "run.rounds=3", "--resume") == 3
    error = capsys.readouterr().err
    said = "round 3, the last, kept the old weights; 0 of 3 replies were valid: partition 0 failed: Runtime"
    assert error.startswith(f"snnfl: finished, but not as configured: {said}")


def test_a_run_without_a_valid_reply_is_status_1_wherever_it_takes_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_app, "app", Failing(0, 1, 2))
    said = "no client sent a valid update in any round: partition 0 failed: RuntimeError: no battery"
    for arguments in (["run", "empty.yaml", *OPTIONS], ["run", "empty.yaml", *OPTIONS, "--resume"]):
        assert in_this_process(*arguments) == 1
        assert capsys.readouterr().err == f"snnfl: {said}\n"
    config = compose(None, [*OPTIONS, f"run.directory={Path('runs').resolve()}"])
    rows = read_metrics(Path("runs/run"))
    with pytest.raises(RunFailedError, match=f"^a cell: {said}$"):  # of `flower-simulation` and `snnfl compare`
        check_results({"a cell": (config, rows)})


def test_of_many_that_failed_a_few_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="3"), ending("snnfl"):
        raise NotAsConfiguredError([f"partition {n}" for n in range(100)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "snnfl: finished, but not as configured: partition 0"
    assert lines[5:] == ["snnfl: finished, but not as configured: and 95 more; all are in metrics.jsonl"]


STUDY = """
name: study
options: {data.clients: 2, model.name: mlp, training.epochs: 1, run.rounds: 1, data.test_images: 20,
          strategy.spiking: false}
matrix: {strategy.timeout: [1000, 0.001]}
tables: [{rows: strategy.timeout, value: replies}]
"""


@pytest.mark.slow
def test_a_study_with_such_a_cell_shows_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("study.yaml").write_text(STUDY)
    assert in_this_process("compare", "study.yaml") == 1
    said = "strategy.timeout=0.001, seed=0: no client sent a valid update in any round: partition 0 failed: "
    assert capsys.readouterr().err.startswith(f"snnfl: {said}")
    report = (tmp_path / "runs" / "study" / "report.html").read_text()
    assert "Not as configured" in report
    assert "round 1, the last, kept the old weights; 0 of 2 replies were valid" in report


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (RunFileError("x"), 2),
        (FolderInUseError("x"), 2),
        (RefusedRunError("x"), 2),
        (RecordingError("x"), 2),
        (DeployError("x"), 2),
        (EngineError("x"), 1),
        (RunFailedError("x"), 1),
        (BrokenOffError("x"), 1),
        (RunBrokenOffError("x", "y"), 1),
        (OSError(28, "No space left on device", "/a/file"), 1),
    ],
)
def test_what_a_user_can_help_is_one_line(error: Exception, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done, ending("snnfl"):
        raise error
    assert done.value.code == status
    said = "/a/file: No space left on device" if isinstance(error, OSError) else str(error)
    assert capsys.readouterr().err == f"snnfl: {said}\n"


def test_what_is_ours_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError), ending("snnfl"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), ending("flower-simulation", files=False):
        raise FileNotFoundError(2, "No such file", "a foreign app's")


def test_a_full_disk_says_what_is_kept_even_if_that_cannot_be_read() -> None:
    with (
        pytest.raises(BrokenOffError, match=r"^a: No space left on device; two rounds$"),
        keeping(lambda: "two rounds"),
    ):
        raise OSError(28, "No space left on device", "a")
    with pytest.raises(BrokenOffError, match=r"^a: No space left on device$"), keeping(lambda: str(os.stat("nowhere"))):
        raise OSError(28, "No space left on device", "a")


def test_the_handlers_of_ctrl_c_are_put_back() -> None:
    around = signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background
    before = signal.getsignal(signal.SIGINT)
    with keeping(lambda: ""):
        outer = signal.getsignal(signal.SIGINT)
        with keeping(lambda: ""):
            assert signal.getsignal(signal.SIGINT) not in (before, outer)
        assert signal.getsignal(signal.SIGINT) is outer
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with keeping(lambda: ""):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "as under nohup"
    finally:
        signal.signal(signal.SIGINT, around)


def test_help_and_readme_state_the_statuses() -> None:
    """They are those of the module."""
    text = " ".join(CliRunner().invoke(cli.app, ["--help"]).output.split())
    for status in (0, 1, 2, 3, 130, 143):
        assert re.search(rf"\b{status} [a-z]", text[text.index("Exit status") :]), status
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for status in (0, 1, 2, 3, 130, 141, 143):
        assert f"| {status} |" in readme


def test_whoever_follows_a_deployed_run_learns_of_it_by_its_log() -> None:
    log = ["INFO :  round 1", "WARNING :  finished, but not as configured: partition 1 took no part", "SuperLink ends"]
    with pytest.raises(NotAsConfiguredError, match=r"^partition 1 took no part$"):
        check_log(log)
    with pytest.raises(RunFailedError, match=r"^no client sent a valid update in any round$"):
        check_log([*log, "ERROR :  the run has failed: no client sent a valid update in any round"])
    check_log(["INFO :  round 1"])
    said = ["Successfully built", "🎊 Successfully started run 1234", "INFO"]
    text = still_running(said, "follow {run}", "stop {run}")
    assert text == "run 1234 goes on at the SuperLink: follow it with follow 1234, end it with stop 1234"
    assert still_running(said[:1], "", "") == "no run had been started"


def test_the_error_of_an_app_with_a_package_called_as_ours_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explained(ConfigError("a line")) == (["a line"], 2)
    monkeypatch.setitem(sys.modules, "strategies", ModuleType("strategies"))
    assert explained(ValueError("of that app")) is None


class Missing:
    """Lets nobody find a package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_error_of_an_app_is_its_own_where_a_wheel_keeps_our_strategies_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "strategies"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing("strategies"), *sys.meta_path])
    with pytest.raises(ZeroDivisionError) as raised, ending("flower-simulation", files=False):
        raise ZeroDivisionError
    assert raised.value.__context__ is None
    assert explained(RayError("Ray does not start")) == (["Ray does not start"], 1)
