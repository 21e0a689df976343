"""The command ``flower-simulation``."""

import json
import os
import shlex
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flwr_local import kill_processes, lingering_processes, needs_proc
from hypothesis import given
from hypothesis import strategies as st

from experiments.flower_simulation import UsageError, _node_config, _own_config, _parse_override, _run_config, main
from snnfl.config import compose, flatten

MEAN_APP = Path(__file__).parents[1] / "toy_apps" / "mean"
APP = f"--app {MEAN_APP} --num-supernodes 3"


@pytest.mark.ray
@pytest.mark.flwr
@needs_proc
def test_the_command_runs_an_app_and_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    mark = uuid.uuid4().hex
    command = [Path(sys.executable).parent / "flower-simulation", *shlex.split(APP)]
    try:
        completed = subprocess.run(
            [*command, "--run-config", f'rounds=1 output="{output}"', "--run-config", "rounds=2"],
            env={**os.environ, "SNNFL_TEST": mark},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert completed.returncode == 0, completed.stderr
        assert not lingering_processes("SNNFL_TEST", mark)
    finally:
        kill_processes("SNNFL_TEST", mark)
    result = json.loads(output.read_text())
    assert result["clients"] == 3  # `data.clients` followed --num-supernodes
    np.testing.assert_allclose(result["vector"], [1.0] * 3)  # mean (0*1 + 1*2 + 2*3)/6, three quarters of the way
    assert "Received 3 results and 0 failures" in completed.stderr
    assert "DEPRECATED" not in completed.stderr
    assert "Warning" not in completed.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (f"--app {MEAN_APP}", "required: --num-supernodes"),
        (f"--app {MEAN_APP} --num-supernodes 0", "--num-supernodes 0: expected at least 1"),
        (f"--app {MEAN_APP} --num-supernodes two", "invalid int value: 'two'"),
        ("--num-supernodes 2 --run-config run.round=3", "unknown key 'run.round'; did you mean 'run.rounds'?"),
        ("--num-supernodes 2 --server-app mean_app:server_app", "expected either --app DIR or both --server-app"),
        (f"{APP} --server-app a:b --client-app a:b", "expected either --app DIR or both --server-app"),
        ("--num-supernodes 2 --app nowhere", "Cannot find pyproject.toml in nowhere"),
        ("--num-supernodes 2 --server-app nowhere:app --client-app a:b", "no module 'nowhere' in . or the installed"),
        ("--num-supernodes 2 --server-app json.nowhere:app --client-app a:b", "no module 'json.nowhere'"),
        ("--num-supernodes 2 --server-app json --client-app a:b", "Missing attribute in json"),
        ("--num-supernodes 2 --server-app json:app --client-app a:b", "Unable to load attribute app from module json"),
        ("--num-supernodes 2 --server-app json:dumps --client-app a:b", "expected a ServerApp, found function"),
        (f"{APP} --run-config round=3", "unknown key 'round'; did you mean 'rounds'?"),
        (f"{APP} --run-config rounds", "expected key=value, found 'rounds'"),
        (f"{APP} --run-config 'rounds= 3'", "expected key=value, found 'rounds='"),
        (f"{APP} --run-config 'rounds = 3'", "expected key=value, found 'rounds'"),
        (f"{APP} --run-config output=result", "text needs quotes"),
        (f"""{APP} --run-config "output='" """, "No closing quotation"),
        (f"{APP} --run-config nowhere.toml", "No such file"),
        (f"{APP} --run-config data.clients=5", "data.clients=5: --num-supernodes is 3"),
        (f"{APP} --backend-config {{", "not JSON"),
        (f"{APP} --backend-config []", "expected an object of objects"),
        (f"{APP} --backend-config '{{\"init_args\": 1}}'", "expected an object of objects"),
        (f"{APP} --backend-config '{{\"init-arg\": {{}}}}'", "unknown key 'init_arg'; did you mean 'init_args'?"),
        (f'{APP} --backend-config \'{{"init-args": {{"num-cpu": 1}}}}\'', "Unknown keyword argument(s): num_cpu"),
        (f"{APP} --backend vmap", "invalid choice: 'vmap'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(arguments))
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    assert complaint in printed.err
    assert printed.err.startswith("flower-simulation: ")
    assert printed.err.count("\n") == 1


def test_a_folder_whose_pyproject_is_no_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, complaint in (("[project]\nname = 'x'", "Missing [tool.flwr.app] section"), ("[", "--app")):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["--app", str(tmp_path), "--num-supernodes", "2"])
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1


def test_an_app_that_imports_what_is_not_there_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "importing_app.py").write_text("import not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        main(shlex.split("--num-supernodes 2 --server-app importing_app:app --client-app importing_app:app"))


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["-h"])
    assert capsys.readouterr().out.count("  flower-simulation --") == 2


def test_the_run_config() -> None:
    defaults = {"rounds": 2, "text": "a b", "data.clients": 10}
    assert _run_config(defaults, [], 4) == {"rounds": 2, "text": "a b", "data.clients": 4}
    assert _run_config(defaults, ["rounds=3 text='c d'", "rounds=5"], 10)["rounds"] == 5
    assert _run_config(defaults, ["text='c d'"], 10)["text"] == "c d"
    assert _run_config({"rounds": 2}, [], 4) == {"rounds": 2}
    assert _run_config(None, ["anything.at.all=true"], 4) == {"anything.at.all": True}
    assert _run_config(None, ["data.clients=4"], 4) == {"data.clients": 4}


def test_a_toml_file_overrides(tmp_path: Path) -> None:
    path = tmp_path / "overrides.toml"
    path.write_text("rounds = 7\n[data]\nclients = 4\n")
    assert _parse_override(str(path)) == {"rounds": 7, "data.clients": 4}


KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,8}(\.[a-z][a-z0-9_-]{0,8}){0,2}", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.sampled_from(" []{},.=-")),
)


@given(KEYS, VALUES)
def test_a_written_override_is_read_back(key: str, value: bool | int | float | str) -> None:
    written = f'"{value}"' if isinstance(value, str) else str(value).lower()
    read = _parse_override(f"{key}={written}")
    assert read == {key: value}
    assert type(read[key]) is type(value)


@given(st.text() | st.text(st.sampled_from("ab=.'\"[]{} 1\n\\")))
def test_any_override_is_read_or_explained_in_one_line(text: str) -> None:
    with suppress(UsageError):
        parsed = _parse_override(text)
        assert all(isinstance(value, bool | int | float | str) for value in parsed.values())
        assert len(parsed) == len(shlex.split(text))  # nothing was ignored
        return
    with pytest.raises(UsageError, match=r"\A--run-config [^\n]+\Z"):
        _parse_override(text)


def test_the_clients_of_our_app_keep_their_state_in_the_folder_of_the_run(tmp_path: Path) -> None:
    config = compose(None, [f"run.directory={tmp_path}", "run.name=one"])
    folders = {"state-directory": tmp_path / "one/clients", "truth-directory": tmp_path / "one/audit/truth"}
    assert _node_config(_own_config(flatten(config))) == {name: str(path) for name, path in folders.items()}
    assert _node_config(_own_config({"run.directory": "runs", "rounds": 3})) == {}, "another app's business"
