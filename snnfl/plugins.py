"""Plug-ins: a user's own Python files, modules and installed packages that register more things by name.

A plug-in registers by the decorators of the registries: data sets, models, strategies, objectives, attacks, detectors,
trackers. It is named by ``plugins:`` at the top of a configuration or study, by ``--plugin``, or by an installed
package (entry points of the group ``snnfl``). It is code, and does whatever its process may. So only who starts a
command names it: neither the folder of an earlier run nor a message over a network does. A process that works for the
command is sent the file's content; a SuperNode runs what the app that it is sent holds (``_shipped/``), as it runs the
app.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from snnfl.config import Config, ConfigError, compose
from snnfl.config.merging import read_mapping
from snnfl.registry import forget, registered

GROUP = "snnfl"
"""Of entry points."""

SHIPPED = Path(__file__).parent / "_shipped"
"""Where the app of a deployment holds its plug-ins."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A plug-in as its process has run it.

    Attributes:
        name: Of its file, or of its module.
        path: Of its file, absolute; of a module ``None``.
        source: What the file held; of a module ``None``.
        version: SHA-256 of the file; of an installed package the package and its version.
        installed: Whether an installed package registers it by itself.
    """

    name: str
    path: str | None = None
    source: bytes | None = None
    version: str
    installed: bool = False

    def as_json(self) -> dict[str, str]:
        """Return what tells it from another version of itself."""
        return {"name": self.name, "version": self.version}


def pack(plugins: Iterable[Plugin]) -> bytes:
    """Write plug-ins for another process of the same command."""
    listed = [asdict(plugin) for plugin in plugins]
    for each in listed:
        each["source"] = None if each["source"] is None else each["source"].decode("latin-1")  # any byte is a character
    return json.dumps(listed).encode()


def unpack(content: bytes) -> list[Plugin]:
    """Read back what :func:`pack` wrote."""
    listed = json.loads(content)
    return [
        Plugin(**{**each, "source": None if each["source"] is None else each["source"].encode("latin-1")})
        for each in listed
    ]


_loaded: dict[str, Plugin] = {}
"""What this process has run, by the module that it became."""


def loaded() -> tuple[Plugin, ...]:
    """Return the plug-ins of this process, in their order."""
    return tuple(_loaded.values())


def load(what: str | Path, folder: Path | None = None) -> Plugin:
    """Run a plug-in, unless this process has.

    Args:
        what: A file, whose name ends in ``.py``, or the name of a module that can be imported.
        folder: Where a relative file is looked for; ``None`` for the current one.

    Raises:
        ConfigError: If it isn't there or fails, naming its file and line, or another one became the same module.
    """
    text = str(what)
    if text.endswith(".py") or "/" in text or isinstance(what, Path):
        return _run_file((folder or Path()) / Path(text).expanduser())
    if text in _loaded:
        return _loaded[text]
    try:
        module = importlib.import_module(text)
    except ModuleNotFoundError as error:
        if not f"{text}.".startswith(f"{error.name}."):
            raise _failed(text, error, None) from error
        raise ConfigError(f"plug-in {text}: {error}; install it, or name its file, which ends in .py") from None
    except Exception as error:  # of somebody else's code
        raise _failed(text, error, None) from error
    file = getattr(module, "__file__", None)
    version = "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    _loaded[text] = Plugin(name=text, version=version)
    return _loaded[text]


def load_installed() -> None:
    """Run the plug-ins of installed packages, and those that the app of this process holds, once.

    Raises:
        ConfigError: If one fails, naming its package.
    """
    for entry in metadata.entry_points(group=GROUP):
        if entry.value not in _loaded:
            try:
                entry.load()
            except Exception as error:  # of somebody else's code
                raise _failed(f"{entry.value} of {entry.dist and entry.dist.name}", error, None) from error
            version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
            _loaded[entry.value] = Plugin(name=entry.value, version=version, installed=True)
    for file in sorted(SHIPPED.glob("*.py")):
        _run(file.name.partition("_")[2], str(file), file.read_bytes())


def adopt(plugins: Iterable[Plugin]) -> None:
    """Run in this process what another one has run, from the content that it had there.

    Raises:
        ConfigError: If one fails, or this process has another version of it.
    """
    load_installed()
    for plugin in plugins:
        if plugin.path is not None and plugin.source is not None:
            _run(plugin.name, plugin.path, plugin.source)
        elif load(plugin.name).version != plugin.version:
            raise ConfigError(f"plug-in {plugin.name}: another version of it is installed here than where it was named")


def resolve(
    base: Config | Mapping[str, Any] | str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    plugins: Iterable[str | Path] = (),
) -> Config:
    """Run the plug-ins of installed packages, of a configuration and of a command, then compose the configuration.

    Args:
        base: As for :func:`~snnfl.config.compose`; a file or mapping may have a list ``plugins``. A file's are relative
            to its folder.
        overrides: Likewise.
        plugins: More, relative to the current folder.

    Raises:
        ConfigError: For a mistake in a plug-in or in the configuration.
    """
    load_installed()
    if isinstance(base, str | Path | Mapping):
        mapping = dict(base) if isinstance(base, Mapping) else read_mapping(Path(base))
        load_listed(mapping.pop("plugins", ()), None if isinstance(base, Mapping) else Path(base).parent)
        base = mapping
    for each in plugins:
        load(each)
    return compose(base, overrides)


def load_listed(listed: Any, folder: Path | None) -> None:
    """Run the plug-ins that a file lists.

    Raises:
        ConfigError: If it is no list of names, or for a mistake in one.
    """
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str | Path) for each in listed):
        raise ConfigError(f"plugins={listed!r}: expected a list of Python files and modules, such as [mine.py]")
    for each in listed:
        load(each, folder)


def check_same(then: Any, *, versions: bool = True) -> str | None:
    """Say in which plug-in this process differs from an earlier one, in one line, or return ``None``.

    Args:
        then: :meth:`Plugin.as_json` of each of that one, as it stands in ``environment.json``. Others that this process
            has make no difference.
        versions: Whether another version of one counts.
    """
    now = {plugin.name: plugin.version for plugin in _loaded.values()}
    for plugin in then if isinstance(then, list) else ():
        name, version = (plugin.get(key) for key in ("name", "version")) if isinstance(plugin, dict) else (None, None)
        if name is not None and name not in now:
            return f"it was started with the plug-in {name}; say --plugin {name}, in Python plugins=[{name!r}]"
        if name is not None and versions and now[name] != version:
            told = f"{_short(version)}, now {_short(now[name])}"
            return f"it was started with another version of the plug-in {name} ({told}); put that one back"
    return None


def _short(version: object) -> str:
    return f"SHA-256 {version[:12]}…" if isinstance(version, str) and len(version) == 64 else str(version)


def _run_file(path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"plug-in {path}: cannot be read ({error.strerror})") from None
    return _run(path.name, str(path.resolve()), source)


def _run(name: str, path: str, source: bytes) -> Plugin:
    """Run a file's content as a module whose name follows from the file's, so that objects of it can be sent."""
    module_name = "snnfl_plugin_" + re.sub(r"\W", "_", name.removesuffix(".py"))
    plugin = Plugin(name=name, path=path, source=source, version=hashlib.sha256(source).hexdigest())
    if (earlier := _loaded.get(module_name)) is not None:
        if earlier.version == plugin.version:
            return earlier
        if earlier.path == path:
            raise ConfigError(f"plug-in {path}: it has changed since this process ran it; start a new process")
        raise ConfigError(f"plug-in {path}: {earlier.path} has the same name; rename one of them")
    module = ModuleType(module_name)
    module.__file__ = path
    sys.modules[module_name] = module
    before = registered()
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:  # of somebody else's code
        del sys.modules[module_name]
        forget(module_name)
        raise _failed(path, error, path) from error
    if registered() == before:
        raise ConfigError(f"plug-in {path}: it registers nothing; decorate a function, as docs/how-to shows")
    _loaded[module_name] = plugin
    return plugin


def _failed(name: str, error: Exception, path: str | None) -> ConfigError:
    """Return the error of a plug-in in one line: its type, its text, and the plug-in's own line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == path] or frames[-1:]
    line, where = (own[-1].lineno, own[-1].filename) if own else (None, name)
    if isinstance(error, SyntaxError) and error.filename is not None:
        line, where = error.lineno, error.filename
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    place = f"{name}, line {line}" if where == name else f"{name} ({where}, line {line})"
    return ConfigError(f"plug-in {place}: {type(error).__name__}: {' '.join(reason.split())}")
