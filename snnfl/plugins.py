"""Plug-ins: a user's own Python files, modules and installed packages that register more things by name.

A plug-in registers by the decorators of the registries: data sets, models, surrogate gradients, encodings,
strategies, objectives, attacks, detectors, poisonings, trackers. It is named by ``plugins:`` at the top of a
configuration or study, by ``--plugin``, or by an installed package (entry points of the group ``snnfl``). It is code,
and does whatever its process may. So only who starts a command names it: neither the folder of an earlier run nor a
message over a network does. A process that works for the command is sent the file's content; a SuperNode runs what
the app that it is sent holds (``_shipped/``), as it runs the app.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from snnfl.config import Config, ConfigError, compose
from snnfl.config.merging import read_mapping
from snnfl.config.options import options, value_of
from snnfl.registry import forget, registered, registries

GROUP = "snnfl"
"""Of entry points."""

SHIPPED = Path(__file__).parent / "_shipped"
"""Where the app of a deployment holds its plug-ins."""

ENDING = "_plugin.py"
"""Of their names there: Flower leaves out files that are called as tests are."""

OF_A_RUN = ("environment.json", "metrics.jsonl")
"""Files beside a run's own configuration."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A plug-in as its process has run it.

    Attributes:
        name: Of its file, or of its module.
        path: Of its file, absolute; of a module ``None``.
        source: What the file held; of a module ``None``.
        version: SHA-256 of the file, of a package's Python files together; of an installed one the package and
            its version.
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
    """Write plug-ins, and where this process finds modules, for another process of the same command."""
    listed = [asdict(plugin) for plugin in plugins]
    for each in listed:
        each["source"] = None if each["source"] is None else each["source"].decode("latin-1")  # any byte is a character
    return json.dumps({"path": [os.path.abspath(folder) for folder in sys.path], "plugins": listed}).encode()


def unpack(content: bytes) -> list[Plugin]:
    """Read back what :func:`pack` wrote, and let this process find the modules that the other one does."""
    packed = json.loads(content)
    sys.path += [folder for folder in packed["path"] if folder not in sys.path]
    return [
        Plugin(**{**each, "source": None if each["source"] is None else each["source"].encode("latin-1")})
        for each in packed["plugins"]
    ]


_loaded: dict[str, Plugin] = {}
"""What this process has run, by the module that it became."""

_owned: dict[str, frozenset[tuple[str, str, str]]] = {}
"""What each registered, likewise: kind, name and home."""

_named: set[str] = set()
"""Those that the present call or its configuration lists, likewise."""


def loaded() -> tuple[Plugin, ...]:
    """Return the plug-ins of this process, in their order."""
    return tuple(_loaded.values())


def used(config: Config, attacks: Iterable[str] = ()) -> tuple[Plugin, ...]:
    """Return the plug-ins that a run is made with, in their order.

    These are the ones that :func:`resolve` was last told of, and those that registered what the configuration names.
    Others make no difference to it: an earlier call of this process ran them, or they are installed for something else.

    Args:
        config: Of the run.
        attacks: That are to be run on it, beside those of ``audit.attacks``.
    """
    known = {key for key, _, _ in options()}
    names = {(each.kind, value_of(config, each.option)) for each in registries() if each.option in known}
    names |= {("detector", name) for name in config.detection.detectors}
    names |= {("attack", name) for name in (*config.audit.attacks, *attacks)}
    of_strategy = {key for key in _loaded if ("strategy", config.strategy.name) in _things(key)}
    if of_strategy:  # only its messages say which objective clients minimise
        names |= {(kind, name) for kind, name, _ in registered() if kind == "objective"}
    return tuple(plugin for key, plugin in _loaded.items() if key in _named or names & _things(key))


def _things(key: str) -> set[tuple[str, str]]:
    """Return kind and name of what a plug-in registered."""
    if owned := _owned.get(key):
        return {(kind, name) for kind, name, _ in owned}
    package = key.partition(":")[0]  # somebody had imported it before it was named
    if _loaded[key].installed:
        package = package.partition(".")[0]
    return {(kind, name) for kind, name, home in registered() if f"{home}.".startswith(f"{package}.")}


@contextmanager
def _registering(key: str) -> Iterator[None]:
    """Note what a plug-in registers; take it back if it fails, but for what modules registered that stay imported."""
    before, modules = registered(), set(sys.modules)
    try:
        yield
    except BaseException:
        new = registered() - before
        forget(thing for thing in new if thing[2] in modules or thing[2] not in sys.modules)
        raise
    _owned[key] = registered() - before


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
    if not all(part.isidentifier() for part in text.split(".")):
        raise ConfigError(f"plug-in {text!r}: expected a file whose name ends in .py, or the name of a module")
    try:
        with _registering(text):
            version = _digest(text)  # before it is imported, and perhaps changed meanwhile
            importlib.import_module(text)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if not f"{text}.".startswith(f"{error.name}."):
            raise _failed(text, error, None) from error
        raise ConfigError(f"plug-in {text}: {error}; install it, or name its file, which ends in .py") from None
    except (Exception, SystemExit) as error:  # of somebody else's code
        raise _failed(text, error, None) from error
    _loaded[text] = Plugin(name=text, version=version)
    return _loaded[text]


def _digest(module: str) -> str:
    """Return the SHA-256 of a module's file, or of all Python files of a package."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    if spec.submodule_search_locations is None:
        files = {"": Path(str(spec.origin))}
    else:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        files = {file.relative_to(each).as_posix(): file for each in folders for file in each.rglob("*.py")}
    try:
        contents = {name: files[name].read_bytes() for name in sorted(files)}
    except OSError as error:
        raise ConfigError(f"plug-in {module}: {error.filename}: cannot be read ({error.strerror})") from None
    if not contents:
        raise ConfigError(f"plug-in {module}: {spec.origin or module}: holds no Python files in a folder; unpack it")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if list(digests) == [""]:
        return digests[""]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode()).hexdigest()


@lru_cache(maxsize=1)
def _entries(find: Callable[..., Iterable[metadata.EntryPoint]], _: object) -> tuple[metadata.EntryPoint, ...]:
    """Find the entry points of our group, again only where packages came or went: every package is looked into."""
    return tuple(find(group=GROUP))


def _changed(path: str) -> int | None:
    """Return when something was added to a folder of packages, or removed."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return None


def load_installed() -> None:
    """Run the plug-ins of installed packages, and those that the app of this process holds, once.

    Raises:
        ConfigError: If one fails, naming its package.
    """
    for entry in _entries(metadata.entry_points, tuple((path, _changed(path)) for path in sys.path)):
        if entry.value not in _loaded:
            try:
                with _registering(entry.value):
                    entry.load()
            except (Exception, SystemExit) as error:  # of somebody else's code
                raise _failed(f"{entry.value} of {entry.dist and entry.dist.name}", error, None) from error
            version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
            _loaded[entry.value] = Plugin(name=entry.value, version=version, installed=True)
    for file in sorted(SHIPPED.glob("*.py")):
        name = file.name.partition("_")[2].removesuffix(ENDING) + ".py"
        _named.add(_key(_run(name, str(file), file.read_bytes())))


def adopt(plugins: Iterable[Plugin]) -> None:
    """Run in this process what another one has run for the same work, from the content that it had there.

    Raises:
        ConfigError: If one fails, or this process has another version of it.
    """
    load_installed()
    for plugin in plugins:
        if plugin.path is not None and plugin.source is not None:
            here = _run(plugin.name, plugin.path, plugin.source)
        elif plugin.installed and plugin.name not in _loaded:
            raise ConfigError(f"plug-in {plugin.name}: it isn't installed here; {_install(plugin.version)}")
        elif (here := load(plugin.name)).version != plugin.version:
            way = f"; {_install(plugin.version)}" if plugin.installed else ""
            raise ConfigError(f"plug-in {plugin.name}: another version of it is here than where it was named{way}")
        if not plugin.installed:
            _named.add(_key(here))


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
    listed = []
    if isinstance(base, str | Path | Mapping):
        mapping = dict(base) if isinstance(base, Mapping) else read_mapping(Path(base))
        folder = None if isinstance(base, Mapping) else Path(base).parent
        if folder is not None and "plugins" in mapping and any((folder / name).exists() for name in OF_A_RUN):
            raise ConfigError(f"{base}: a run's own configuration lists no plugins; say --plugin FILE_OR_MODULE")
        listed = load_listed(mapping.pop("plugins", ()), folder)
        base = mapping
    listed += load_listed([*plugins], None)
    _named.clear()
    _named.update(map(_key, listed))
    return compose(base, overrides)


def load_listed(listed: Any, folder: Path | None) -> list[Plugin]:
    """Run the plug-ins that a file lists.

    Raises:
        ConfigError: If it is no list of names, or for a mistake in one.
    """
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str | Path) for each in listed):
        raise ConfigError(f"plugins={listed!r}: expected a list of Python files and modules, such as [mine.py]")
    return [load(each, folder) for each in listed]


def check_same(then: Any, plugins: Iterable[Plugin], *, versions: bool = True) -> str | None:
    """Say which plug-in of an earlier run is missing or another now, in one line, or return ``None``.

    Args:
        then: :meth:`Plugin.as_json` of each of that run, as it stands in ``environment.json``.
        plugins: Those of now; more of them make no difference.
        versions: Whether another version of one counts.
    """
    now = {plugin.name: plugin.version for plugin in plugins}
    missing: list[str] = []  # files and modules that --plugin brings: named together, not one try after the other
    for plugin in then if isinstance(then, list) else ():
        name, version = (plugin.get(key) for key in ("name", "version")) if isinstance(plugin, dict) else (None, None)
        if name is not None and name not in now:
            if way := _install(version):
                return f"it was started with the plug-in {name}; {way}"
            missing.append(name)
        elif name is not None and versions and now[name] != version:
            told = f"{_short(version)}, now {_short(now[name])}"
            way = _install(version) or "put that one back"
            return f"it was started with another version of the plug-in {name} ({told}); {way}"
    if not missing:
        return None
    said = " ".join(f"--plugin {name}" for name in missing)
    kind = "plug-in" if len(missing) == 1 else "plug-ins"
    return f"it was started with the {kind} {', '.join(missing)}; say {said}, in Python plugins={missing!r}"


def _install(version: object) -> str:
    """Return how to install the version of a package, ``NAME VERSION``; nothing for the digest of a file."""
    package, separator, number = version.partition(" ") if isinstance(version, str) else ("", "", "")
    return f"pip install {package}=={number}" if separator else ""


def _key(plugin: Plugin) -> str:
    return next(key for key, each in _loaded.items() if each is plugin)


def _short(version: object) -> str:
    return f"SHA-256 {version[:12]}…" if isinstance(version, str) and len(version) == 64 else str(version)


def _run_file(path: Path) -> Plugin:
    if path.suffix != ".py":
        raise ConfigError(f"plug-in {path}: the name of its file must end in .py; rename it")
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
    try:
        with _registering(module_name):
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, Exception | SystemExit):  # of somebody else's code
            raise _failed(path, error, path) from error
        raise
    if not _owned[module_name]:
        raise ConfigError(f"plug-in {path}: it registers nothing; decorate a function, as docs/how-to shows")
    _loaded[module_name] = plugin
    return plugin


def _failed(name: str, error: BaseException, path: str | None) -> ConfigError:
    """Return the error of a plug-in in one line: its type, its text, and the plug-in's own line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == path] or frames[-1:]
    line, where = (own[-1].lineno, own[-1].filename) if own else (None, name)
    if isinstance(error, SyntaxError) and error.filename is not None:
        line, where = error.lineno, error.filename
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    place = f"{name}, line {line}" if where == name else f"{name} ({where}, line {line})"
    if isinstance(error, ImportError) and path is not None and _lies_beside(path, error):
        way = "write both into one, or make them a package and name that: PYTHONPATH=FOLDER snnfl … --plugin PACKAGE"
        return ConfigError(f"plug-in {place}: {error}: a plug-in is one file, without what lies beside it; {way}")
    return ConfigError(f"plug-in {place}: {type(error).__name__}: {' '.join(reason.split())}")


def _lies_beside(path: str, error: ImportError) -> bool:
    """Tell whether a file couldn't import what lies in its folder: by a relative import, or as a module."""
    if error.name is None or not isinstance(error, ModuleNotFoundError):
        return "relative import" in str(error)
    beside = Path(path).with_name(error.name.partition(".")[0])
    return beside.is_dir() or beside.with_suffix(".py").is_file()
