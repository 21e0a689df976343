"""Submitting to a SuperLink: what is sent, and how the end of a run is told (for real: tests/test_engines_agree.py)."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from flwr.common.config import parse_config_args
from hypothesis import given

from experiments.engines import deployment
from experiments.engines.deployment import DeploymentError, run_deployed, to_toml, with_absolute_paths
from experiments.engines.local_superlink import address_of, reachable_address
from experiments.signals import Terminated, interrupting
from snnfl.config import Config, compose, flatten, unflatten

CONFIG = compose(None, ["engine.name=deployment", "engine.connection=lab", "run.seed=7"])
ROOT = Path(__file__).parents[3]
STARTED = "Successfully started run 4711"
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")))


def listing(status: str, details: str = "") -> str:
    return "note\n" + json.dumps({"runs": [{"status": status, "status-details": details}]})


Fake = Callable[..., Path]


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a program in the place of Flower's command; return the file of the calls that it gets."""

    def fake(*, run: str = STARTED, listed: str = "", status: int = 0, seconds: float = 0.0) -> Path:
        calls = tmp_path / "calls"
        program = (
            "import json, pathlib, shutil, sys, time\n"
            f"file = pathlib.Path({str(calls)!r})\n"
            "file.open('a').write(json.dumps(sys.argv[1:]) + chr(10))\n"
            f"if sys.argv[1] == 'run': shutil.copy(sys.argv[-1], {str(tmp_path / 'sent.toml')!r})\n"
            f"print({run!r} if sys.argv[1] == 'run' else {listed!r})\n"  # as Flower prints a run's log
            f"time.sleep({seconds} if sys.argv[1] == 'run' else 0.0)\n"
            f"sys.exit({status})\n"
        )
        (tmp_path / "flwr" / "cli").mkdir(parents=True)
        (tmp_path / "flwr" / "cli" / "app.py").write_text(program)
        (tmp_path / "config.toml").write_text(
            '[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:1"\n'
        )
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
        monkeypatch.setenv("FLWR_HOME", str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # before the real package, which has an __init__.py
        for folder in ("flwr", "flwr/cli"):
            (tmp_path / folder / "__init__.py").touch()
        return calls

    return fake


def test_a_run_is_submitted_followed_and_asked_for(flwr: Fake, tmp_path: Path) -> None:
    calls = flwr(run=f"{STARTED}\n\x1b[32mround 1\x1b[0m  done", listed=listing("finished:completed"))
    shown: list[str] = []
    run_deployed(CONFIG, shown.append)
    assert shown == [STARTED, "\x1b[32mround 1\x1b[0m  done"]
    run, listed = map(json.loads, calls.read_text().splitlines())
    nodes = ["--federation-config", "num-supernodes=10"]
    assert run[:-1] == ["run", str(ROOT), "lab", "--stream", *nodes, "--run-config"]
    assert listed == ["list", "lab", "--run-id", "4711", "--format", "json"]
    sent = unflatten(parse_config_args([str(tmp_path / "sent.toml")]))
    assert sent == CONFIG
    assert not Path(run[-1]).exists()


def test_without_a_connection_flower_takes_its_default(flwr: Fake) -> None:
    calls = flwr(listed=listing("finished:completed"))
    run_deployed(compose(None, ["engine.name=deployment"]), lambda line: None)
    run, listed = map(json.loads, calls.read_text().splitlines())
    assert run[:3] == ["run", str(ROOT), "--stream"]
    assert listed[:2] == ["list", "--run-id"]


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        (
            {"listed": listing("finished:failed", "the server\nfailed")},
            r"run 4711: finished:failed: the server failed$",
        ),
        ({"listed": listing("finished:stopped")}, r"run 4711: finished:stopped$"),
        ({"listed": '{"runs": []}'}, r"run 4711: flwr list doesn't tell how it ended$"),
        ({"listed": "{}"}, r"flwr list lists no runs: \{\}$"),
        ({"listed": "no JSON"}, r"flwr list lists no runs: no JSON$"),
        ({"run": "Loading\nno such connection\n\n"}, r"flwr run started no run: no such connection$"),
        (
            {"run": "note\n╭─ Error ──╮\n│ It is not │\n│ there.    │\n╰──────────╯\n", "status": 1},
            r"status 1: It is not there\.$",
        ),
        ({"run": "", "status": 3}, r"flwr run exits with status 3: it printed nothing$"),
    ],
)
def test_a_run_that_does_not_complete_is_an_error_in_one_line(
    flwr: Fake, answers: dict[str, str], complaint: str
) -> None:
    flwr(**answers)
    with pytest.raises(DeploymentError, match=complaint) as error:
        run_deployed(CONFIG, lambda line: None)
    assert len(str(error.value).splitlines()) == 1


def test_a_log_that_breaks_off_is_not_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["running", "running", "finished:completed"]

    def flwr_command(arguments: list[str], show: Callable[[str], None] = lambda line: None, *_: object, **__: object):
        lines = [STARTED] if arguments[0] == "run" else listing(told.pop(0)).splitlines()
        for line in lines:
            show(line)
        return lines

    monkeypatch.setattr(deployment, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(deployment, "flwr_command", flwr_command)
    run_deployed(CONFIG, lambda line: None)
    assert not told


@pytest.mark.parametrize(("number", "stops"), [("SIGTERM", True), ("SIGTERM", False), ("SIGINT", True)])
def test_a_run_is_stopped_by_sigterm_unless_it_is_to_go_on(flwr: Fake, number: str, stops: bool) -> None:
    calls = flwr(seconds=600)

    def be_told(line: str) -> None:
        os.kill(os.getpid(), signal.Signals[number])

    with pytest.raises(KeyboardInterrupt) as interrupt, interrupting():  # the command that showed the log has ended
        run_deployed(CONFIG, be_told, stops=stops)
    assert isinstance(interrupt.value, Terminated) == (number == "SIGTERM")
    _, *others = map(json.loads, calls.read_text().splitlines())
    assert others == ([["stop", "4711", "lab"]] if stops and number == "SIGTERM" else [])


def test_a_superlink_that_closes_its_port_is_not_waited_for(flwr: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "WATCH_SECONDS", 0.1)
    calls = flwr(seconds=60)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def end(line: str) -> None:
            server.accept()[0].close()  # the first time that somebody looks whether it is there
            server.close()

        with pytest.raises(DeploymentError, match=f"^the SuperLink on {address} has ended, and its runs with it$"):
            deployment.flwr_command(["run", str(calls)], end, server=address)


def test_a_superlink_that_was_never_there_is_for_flower_to_tell(flwr: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "WATCH_SECONDS", 0.1)
    calls = flwr(run="no SuperLink there", status=1, seconds=1)
    with pytest.raises(DeploymentError, match=r"^flwr run exits with status 1: no SuperLink there$"):
        deployment.flwr_command(["run", str(calls)], server="127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "connection", "address"),
    [
        (None, None, ":local:"),
        (None, "local", ":local:"),
        (None, "lab", None),
        ('[superlink]\ndefault = "a"\n[superlink.a]\naddress = "fl.example.org:8000"', None, "fl.example.org:8000"),
        ('[superlink.b]\naddress = ":local-in-memory:"', "b", ":local-in-memory:"),
        ("[superlink]", None, None),
        ("superlink = 1", "a", None),
        ("no TOML", "a", None),
    ],
)
def test_the_address_of_a_connection(
    text: str | None, connection: str | None, address: str | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.toml").write_text(text)
    environment = {"FLWR_HOME": str(tmp_path), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "12345"}
    assert address_of(connection, environment) == address
    local = address is not None and address.startswith(":")
    assert reachable_address(address, environment) == ("127.0.0.1:12345" if local else address)


@given(directory=TEXT, root=st.none() | TEXT, beta=st.floats(1e-300, 1e300))
def test_flower_reads_what_is_written(
    directory: str, root: str | None, beta: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flat = flatten(compose(None, [])) | {"run.directory": directory, "data.beta": beta}
    if root not in (None, "null"):
        flat["data.root"] = root
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_text(to_toml(flat), encoding="utf-8")
    assert parse_config_args([str(path)]) == flat


def test_paths_mean_this_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(compose(None, ["run.directory=there", "data.root=../data"]))
    assert config.run.directory == str(tmp_path / "there")
    assert Path(config.data.root).resolve() == (tmp_path / "../data").resolve()
    assert with_absolute_paths(Config()).data.root is None
