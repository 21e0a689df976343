"""Plug-ins: what is run, once, under which name, and what is said of one that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from snnfl import plugins
from snnfl.config import Config, ConfigError, compose, unflatten
from snnfl.data.sources import SOURCES
from snnfl.models.registry import MODELS

MODEL = """\
from torch import nn
from snnfl.models import register

class Mine(nn.Linear):
    pass

@register("mine")
def mine(config, input_shape, classes):
    return Mine(input_shape[0], classes)
"""

pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.fixture(autouse=True)
def _no_modules_stay() -> Iterator[None]:
    """What a test imports as a plug-in is forgotten after it."""
    with patch.dict(sys.modules), patch.object(sys, "path", [*sys.path]):
        yield


def written(folder: Path, source: str = MODEL, name: str = "mine.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(source)
    return folder / name


def test_a_configuration_names_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "run.yaml").write_text("plugins: [mine.py]\nmodel: {name: mine}\n")
    assert plugins.resolve(tmp_path / "run.yaml", ["run.rounds=3"]).run.rounds == 3
    assert "mine" in MODELS


def test_a_file_is_run_once_under_a_name_that_objects_can_be_sent_by(tmp_path: Path) -> None:
    path = written(tmp_path, "import builtins\nbuiltins.times = getattr(builtins, 'times', 0) + 1\n" + MODEL)
    first = plugins.load(path)
    assert plugins.load(str(path)) is first
    assert sys.modules["builtins"].times == 1  # type: ignore[attr-defined]
    made = sys.modules["snnfl_plugin_mine"].Mine
    assert made.__module__ == "snnfl_plugin_mine"
    assert [plugin.name for plugin in plugins.loaded()] == ["mine.py"]


def test_nothing_but_a_command_names_a_plugin(tmp_path: Path) -> None:
    """Neither the configuration in a run's folder, nor one that came over a network, is more than options."""
    written(tmp_path, "raise SystemExit('run')")
    (tmp_path / "config.yaml").write_text("plugins: [mine.py]\n")
    with pytest.raises(ConfigError, match="unknown section 'plugins'"):
        compose(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="unknown section 'plugins'"):
        unflatten({"plugins": f'["{tmp_path}/mine.py"]', "run.rounds": 1})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, r"mine\.py: cannot be read \(No such file or directory\)$"),
        ("x = 1", r"mine\.py: it registers nothing; decorate a function"),
        ("x = 1\n\n1 / 0", r"mine\.py, line 3: ZeroDivisionError: division by zero$"),
        ("x = 1\ny = (", r"mine\.py, line 2: SyntaxError: '\(' was never closed$"),
        ("import nowhere_at_all", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'$"),
        (MODEL.replace('"mine"', '"mlp"'), r"mine\.py, line 7: ValueError: model 'mlp' is already registered by snnfl"),
    ],
)
def test_what_fails_is_one_line_with_its_place(tmp_path: Path, source: str | None, words: str) -> None:
    path = tmp_path / "mine.py" if source is None else written(tmp_path, source)
    with pytest.raises(ConfigError, match=words) as told:
        plugins.load(path)
    assert str(told.value).startswith(f"plug-in {path}")
    assert "\n" not in str(told.value)
    assert plugins.loaded() == ()


@pytest.mark.parametrize(
    "line", ["import helpers", "from helpers import tools", "from .helpers import tools", "from . import helpers"]
)
@pytest.mark.parametrize("beside", ["helpers.py", "helpers/__init__.py"])
def test_a_file_that_wants_what_lies_beside_it_is_told_what_to_do(tmp_path: Path, line: str, beside: str) -> None:
    written(tmp_path / Path(beside).parent, "tools = 1", Path(beside).name)
    path = written(tmp_path, f"\n{line}\n{MODEL}")
    with pytest.raises(ConfigError, match=r"a plug-in is one file.*make them a package.* --plugin PACKAGE$") as told:
        plugins.load(path)
    assert str(told.value).startswith(f"plug-in {path}, line 2: ")
    assert "\n" not in str(told.value)


def test_a_mended_file_can_be_run_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 11: NameError"):
        plugins.load(written(tmp_path, MODEL + "\noops"))
    assert "mine" not in MODELS
    plugins.load(written(tmp_path))
    assert "mine" in MODELS


def test_two_files_of_one_name_and_a_changed_one_are_refused(tmp_path: Path) -> None:
    path = plugins.load(written(tmp_path)).path
    with pytest.raises(ConfigError, match=rf"{path} has the same name; rename one"):
        plugins.load(written(tmp_path / "other", MODEL.replace('"mine"', '"yours"')))
    with pytest.raises(ConfigError, match="has changed since this process ran it"):
        plugins.load(written(tmp_path, MODEL + "# new"))


@pytest.mark.parametrize("listed", ["mine.py", [1], {"mine.py": None}])
def test_the_list_is_a_list_of_names(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of Python files and modules"):
        plugins.resolve({"plugins": listed})


def test_a_module_is_a_plugin_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, name="federated_plugin.py")
    monkeypatch.syspath_prepend(tmp_path)
    (plugin,) = [plugins.load("federated_plugin")]
    assert (plugin.name, plugin.source, len(plugin.version)) == ("federated_plugin", None, 64)
    with pytest.raises(ConfigError, match=r"^plug-in nowhere\.at: No module named 'nowhere'; install it, or name its"):
        plugins.load("nowhere.at")


class Entry:
    """An entry point of an installed package."""

    value = "their.package"

    class dist:
        name, version = "theirs", "1.2"

    def __init__(self, load: Any) -> None:
        self.load = load


def test_an_installed_package_registers_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry(lambda: calls.append(1))])
    plugins.resolve(None)
    plugins.load_installed()
    assert calls == [1]
    assert [plugin.as_json() for plugin in plugins.loaded()] == [{"name": "their.package", "version": "theirs 1.2"}]


def test_a_package_that_is_installed_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_installed()
    (tmp_path / "theirs_later.py").write_text("")
    (tmp_path / "theirs-2.0.dist-info").mkdir()
    (tmp_path / "theirs-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 2.0\n")
    (tmp_path / "theirs-2.0.dist-info/entry_points.txt").write_text("[snnfl]\nlater = theirs_later\n")
    plugins.load_installed()
    assert [plugin.version for plugin in plugins.loaded()] == ["theirs 2.0"]


def test_an_installed_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry(lambda: 1 / 0)])
    with pytest.raises(ConfigError, match=r"^plug-in their\.package of theirs \(.*: ZeroDivisionError"):
        plugins.load_installed()


def test_another_process_runs_the_content_that_was_read_here(tmp_path: Path) -> None:
    path = written(tmp_path, "# coding: latin-1\n# \xe9\n" + MODEL)
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    plugins.load(path)
    packed = plugins.pack(plugins.loaded())
    path.unlink()
    MODELS.items.pop("mine")
    MODELS.homes.pop("mine")
    plugins._loaded.clear()
    plugins.adopt(plugins.unpack(packed))
    assert "mine" in MODELS
    assert plugins.unpack(packed) == list(plugins.loaded())


def test_a_node_runs_what_its_own_app_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snnfl.workspace import workspace

    written(tmp_path, name="00_mine_plugin.py")
    data = "from snnfl.data.sources import SOURCES, register\nregister('theirs')(SOURCES.find('digits'))\n"
    written(tmp_path, data, name="01_data_plugin.py")
    monkeypatch.setattr(plugins, "SHIPPED", tmp_path)
    config = compose(None, ["data.source=theirs", "model.name=mlp", "data.clients=2"])
    workspace(config)
    assert {"mine.py", "data.py"} == {plugin.name for plugin in plugins.loaded()}
    assert "theirs" in SOURCES


def test_what_a_run_began_with_is_compared(tmp_path: Path) -> None:
    then = [plugins.load(written(tmp_path)).as_json()]
    assert plugins.check_same(then, plugins.loaded()) is None
    changed = [{**then[0], "version": "0" * 64}]
    assert "another version of the plug-in mine.py (SHA-256 000000000000…, now " in str(
        plugins.check_same(changed, plugins.loaded())
    )
    assert plugins.check_same(changed, plugins.loaded(), versions=False) is None
    assert str(plugins.check_same(then, ())).startswith("it was started with the plug-in mine.py; say --plugin mine.py")
    both = [{"name": "model.py", "version": "1"}, {"name": "data.py", "version": "1"}]
    assert plugins.check_same(both, ()) == (
        "it was started with the plug-ins model.py, data.py; say --plugin model.py --plugin data.py, "
        "in Python plugins=['model.py', 'data.py']"
    )
    assert plugins.check_same(None, ()) is None
    assert plugins.check_same([3, {"name": None}], ()) is None
    theirs = [{"name": "their.package:setup", "version": "theirs 1.2"}]
    assert plugins.check_same(theirs, ()) == (
        "it was started with the plug-in their.package:setup; pip install theirs==1.2"
    )
    (newer,) = [plugins.Plugin(name="their.package:setup", version="theirs 1.3", installed=True)]
    assert str(plugins.check_same(theirs, [newer])).endswith("(theirs 1.2, now theirs 1.3); pip install theirs==1.2")


def used(config: Config) -> list[str]:
    return [plugin.name for plugin in plugins.used(config)]


def test_a_run_has_the_plugins_that_it_names_things_of_and_those_that_are_listed(tmp_path: Path) -> None:
    other = written(tmp_path, MODEL.replace('"mine"', '"yours"'), "other.py")
    config = plugins.resolve({"model": {"name": "mine"}}, (), [written(tmp_path), other])
    assert used(config) == ["mine.py", "other.py"]
    assert used(plugins.resolve({"plugins": [str(other)]})) == ["other.py"]
    assert used(plugins.resolve(None)) == []
    assert used(plugins.resolve({"model": {"name": "mine"}})) == ["mine.py"]


def test_what_the_options_name_tells_whose_they_are(tmp_path: Path) -> None:
    lines = [
        "from snnfl import detection, poisoning, attacks",
        "from snnfl.training import objectives",
        "from strategies import bases, tracking",
        "function = lambda *given: None",
    ]
    registers = {
        "detector": "detection.register('d', source='')(function)",
        "poisoning": "poisoning.register('p', source='')(function)",
        "attack": "attacks.register('a', source='', needs=(), against='plain')(function)",
        "objective": "objectives.register('o')(function)",
        "strategy": "bases.register('s')(function)",
        "tracker": "tracking.register('t', package='json')(function)",
    }
    for name, line in registers.items():
        plugins.load(written(tmp_path, "\n".join([*lines, line]), f"{name}.py"))
    assert used(compose()) == []
    assert used(compose(None, ["detection.detectors=[norm,d]"])) == ["detector.py"]
    assert used(compose(None, ["poisoning.attack=p"])) == ["poisoning.py"]
    assert used(compose(None, ["strategy.name=s"])) == ["objective.py", "strategy.py"]
    assert used(compose(None, ["run.tracking=t"])) == ["tracker.py"]
    assert [plugin.name for plugin in plugins.used(compose(), ["a"])] == ["attack.py"]
    assert used(compose(None, ["audit.record=true", "audit.attacks=[a]"])) == ["attack.py"]


def test_an_installed_package_counts_where_something_of_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        MODELS.add("theirs", lambda *given: None, home="their.models")  # type: ignore[arg-type, misc, return-value]

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry(load)])
    assert used(plugins.resolve(None)) == []
    assert used(plugins.resolve({"model": {"name": "theirs"}})) == ["their.package"]
    plugins._owned.clear()  # as if somebody had imported it before
    assert used(compose(None, ["model.name=theirs"])) == ["their.package"]
    assert used(compose()) == []


def test_what_is_installed_elsewhere_alone_is_told_with_its_package() -> None:
    theirs = plugins.Plugin(name="their.package:setup", version="theirs 1.2", installed=True)
    with pytest.raises(ConfigError, match=r"their\.package:setup: it isn't installed here; pip install theirs==1\.2$"):
        plugins.adopt([theirs])


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "raise KeyboardInterrupt"])
def test_what_ends_the_process_registers_nothing(tmp_path: Path, end: str) -> None:
    expected = ConfigError if "Exit" in end else KeyboardInterrupt
    with pytest.raises(expected):
        plugins.load(written(tmp_path, f"{MODEL}\n{end}\n"))
    assert "mine" not in MODELS
    assert plugins.load(written(tmp_path)).name == "mine.py"


def test_a_module_that_fails_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path, f"{MODEL}\nraise SystemExit('enough')\n", "federated_plugin.py")
    with pytest.raises(ConfigError, match=r"federated_plugin.*, line 11.*SystemExit: enough"):
        plugins.load("federated_plugin")
    assert "mine" not in MODELS


def test_a_file_has_no_future_of_ours(tmp_path: Path) -> None:
    plugins.load(written(tmp_path, MODEL + "\ndef f(x: int): ...\nassert f.__annotations__ == {'x': int}\n"))


def test_a_change_anywhere_in_a_package_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path / "federated", "from federated.models import mine\n", "__init__.py")
    inner = written(tmp_path / "federated", MODEL, "models.py")
    first = plugins.load("federated").version
    for name in [name for name in sys.modules if name.startswith("federated")]:
        del sys.modules[name]
    plugins._loaded.clear()
    MODELS.items.pop("mine"), MODELS.homes.pop("mine")
    inner.write_text(f"{MODEL}\nimport pathlib\npathlib.Path(__file__).write_text('# changed by now')\n")
    second = plugins.load("federated").version
    inner.write_text(MODEL)
    assert len({first, second, plugins._digest("federated")}) == 2
    assert plugins._digest("federated") == first


@pytest.mark.parametrize("what", [".", "", "..x", "a b", "mine.yaml/", Path("mine.txt")])
def test_what_is_neither_a_file_nor_a_module_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str | Path
) -> None:
    written(tmp_path, name="mine.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^plug-in .*ends? in \.py") as told:
        plugins.load(what)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("inside", ["zipped.py", "zipped/__init__.py"])
def test_a_module_in_an_archive_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr(inside, MODEL)
    monkeypatch.syspath_prepend(tmp_path / "all.zip")
    with pytest.raises(ConfigError, match=r"^plug-in zipped: .*all\.zip.*") as told:
        plugins.load("zipped")
    assert "\n" not in str(told.value)
    assert "mine" not in MODELS


@pytest.mark.parametrize("beside", ["environment.json", "metrics.jsonl"])
def test_a_runs_own_configuration_names_no_code(tmp_path: Path, beside: str) -> None:
    written(tmp_path)
    (tmp_path / "config.yaml").write_text("plugins: [mine.py]\n")
    (tmp_path / beside).touch()
    with pytest.raises(ConfigError, match=r"config\.yaml: a run's own configuration lists no plugins; say --plugin"):
        plugins.resolve(tmp_path / "config.yaml")
    assert "mine" not in MODELS


def test_another_process_of_the_command_finds_the_same_modules(tmp_path: Path) -> None:
    written(tmp_path, name="federated_plugin.py")
    with patch.object(sys, "path", [*sys.path, str(tmp_path)]):
        packed = plugins.pack([plugins.load("federated_plugin")])
    code = (
        "import sys; from snnfl.plugins import adopt, unpack; adopt(unpack(sys.stdin.buffer.read()))\n"
        "from snnfl.models.registry import MODELS; assert 'mine' in MODELS"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(plugins.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-P", "-c", code], input=packed, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
