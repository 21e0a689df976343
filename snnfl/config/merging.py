"""From YAML, ``key=value`` and Flower's flat ``run_config`` to a :class:`Config` and back, by OmegaConf.

A configuration is written in four places that must agree: the dataclasses, a YAML file, the command line and Flower's
``run_config``. This module is the only one that converts between them.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from snnfl.config.checks import validate
from snnfl.config.declaration import ConfigError, FlatValue, choices, nearest, show, unlike
from snnfl.config.options import Config, options, value_of
from snnfl.config.reading import read_yaml

EXACT = 2**53
"""Up to here every whole number is a ``float``."""


def compose(
    base: Config | Mapping[str, Any] | str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Merge the defaults, a YAML file and overrides.

    Args:
        base: YAML file, the same as a mapping, a configuration, or ``None`` for the defaults.
        overrides: For example ``["data.clients=5", "training.milestones=[10,20]"]``, or as a mapping by section or by
            dotted key: ``{"data": {"clients": 5}, "training.milestones": [10, 20]}``.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: For a missing or malformed file, an unknown key, a wrong type or a value out of range.
    """
    layers = [] if base is None else [_layer(base)]
    if isinstance(overrides, Mapping):
        return _merge([*layers, _nested(overrides)])
    return _merge([*layers, *map(assigned, overrides)])


def assigned(item: str) -> dict[str, Any]:
    """Read ``section.name=value`` of a command line as a mapping by section.

    Raises:
        ConfigError: If it isn't of this form, or its value isn't YAML.

    >>> assigned("training.milestones=[10, 20]")
    {'training': {'milestones': [10, 20]}}
    """
    key, separator, value = item.partition("=")
    if not separator or not key:
        more = "; one file is enough" if item.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"override {item!r}: expected key=value, for example data.clients=5{more}")
    if not value.strip():  # as of a shell variable that isn't set; YAML would take it for null
        raise ConfigError(f"override {item!r}: nothing after the equals sign; {key}=null means none")
    try:
        return copy.deepcopy(_read(item))
    except Exception as error:  # OmegaConf passes on whatever its YAML grammar raises
        raise ConfigError(f"override {item!r}: not a YAML value ({_first_line(error)})") from None


@lru_cache(maxsize=4096)
def _read(item: str) -> dict[str, Any]:
    """Read ``section.name=value``; all cells of a study have most of theirs in common."""
    return _raw(OmegaConf.from_dotlist([item]))


def _layer(base: Config | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(base, Config):
        return _nested({key: value_of(base, key) for key, _, _ in options()})
    return _nested(base) if isinstance(base, Mapping) else read_mapping(Path(base))


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """Write options by dotted key or by section as sections."""
    layer: dict[str, Any] = {}
    for key, value in given.items():
        section, separator, name = str(key).partition(".")
        if separator:
            content = {name: value}
        elif isinstance(value, Mapping):
            content = dict(value)
        else:
            layer[section] = value
            continue
        layer[section] = {**layer.get(section, {}), **content}
    return layer


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """Write options, by section or by dotted key, as ``key=value`` each, as on a command line.

    >>> assignments({"data": {"clients": 5}, "training.milestones": (10, 20)})
    ['data.clients=5', 'training.milestones=[10, 20]']
    """
    layer = _nested(overrides)
    return [
        f"{section}.{name}={json.dumps(value)}"
        for section, content in layer.items()
        for name, value in (content.items() if isinstance(content, dict) else ())
    ] + [f"{section}={json.dumps(content)}" for section, content in layer.items() if not isinstance(content, dict)]


def flatten(config: Config) -> dict[str, FlatValue]:
    """Write a configuration as Flower's flat ``run_config``: lists and nulls become JSON text."""

    def encode(value: Any) -> FlatValue:
        return json.dumps(value) if value is None or isinstance(value, tuple) else value

    return {key: encode(value_of(config, key)) for key, _, _ in options()}


def unflatten(run_config: Mapping[str, Any]) -> Config:
    """Read a configuration back from Flower's flat ``run_config``, which a server sends to its clients.

    Values are taken as they stand: an interpolation such as ``${oc.env:HOME}`` would read this machine's environment
    on behalf of whoever sent it, so it is refused.

    Raises:
        ConfigError: As :func:`compose`.
    """
    kinds = {key: kind for key, _, kind in options()}
    layer: dict[str, Any] = {}
    for key, value in run_config.items():
        if "${" in f"{key}{value}" or value == "???":
            raise ConfigError(f"{show(key)}={show(value)}: a run config holds plain values, no interpolation")
        section, separator, name = key.partition(".")
        if not separator:
            layer[key] = value
            continue
        layer.setdefault(section, {})[name] = _decode(value, kinds.get(key)) if isinstance(value, str) else value
    return _merge([layer])


def _decode(text: str, kind: Any) -> Any:
    """Read the JSON text of a list, a number or null; an option that is text takes it as it is, but for null."""
    if kind is str or typing.get_origin(kind) is Literal:
        return text
    if kind == str | None:
        return None if text == "null" else text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that :func:`compose` reads back."""
    sections = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return "".join(_written(name, _Section(repr(section), section)) for name, section in sections.items())


@dataclasses.dataclass(frozen=True)
class _Section:
    """A section that is told by its words, in which 1 isn't 1.0, and which a list in it has, too."""

    words: str
    content: Any = dataclasses.field(compare=False)


@lru_cache(maxsize=1024)
def _written(name: str, section: _Section) -> str:
    """Write a section, which the cells of a study share."""
    return OmegaConf.to_yaml(OmegaConf.create({name: dataclasses.asdict(section.content)}))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file as it stands.

    Raises:
        ConfigError: If it is missing, empty, malformed or no mapping.
    """
    content = read_yaml(path, "sections such as run, data and model, or {} for the defaults")
    if "matrix" in content:
        raise ConfigError(f"{path}: it is a study, not the configuration of a run: snnfl compare {path}")
    return content


def _raw(layer: DictConfig) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))


def _merge(layers: Sequence[dict[str, Any]]) -> Config:
    for layer in layers:
        _check_keys(layer)
    try:
        config = _plain(layers) or typing.cast(Config, OmegaConf.to_object(OmegaConf.merge(_schema(), *layers)))
    except ConfigError as error:  # of the one section that checks itself, for it is built in Python, too
        raise ConfigError(f"conversion.{error}") from None
    except Exception as error:  # OmegaConf raises its own, ValueError, TypeError and its grammar's errors
        raise _first_mistake(layers, error) from None
    validate(config)
    return config


def _plain(layers: Sequence[dict[str, Any]]) -> Config | None:
    """Merge layers whose values all have the type of their option, as OmegaConf would in twenty times the time.

    Returns:
        The configuration; ``None`` if a value is to be converted, to be looked up (``${…}``), missing or wrong.
    """
    kinds = {key: kind for key, _, kind in options()}
    given: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, content in layer.items():
            for name, value in content.items():
                kind = kinds[f"{section}.{name}"]
                if not _fits(value, kind):
                    return None
                given.setdefault(section, {})[name] = _converted(value, kind)
    default = Config()
    sections = {
        section: dataclasses.replace(getattr(default, section), **content) for section, content in given.items()
    }
    return dataclasses.replace(default, **sections)


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value has the type of an option, so that nothing is to be done but to take it."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return type(value) in (list, tuple) and all(_fits(each, parts[0]) for each in value)
    if value is None:
        return type(None) in parts
    if named := choices(kind):
        return any(type(value) is type(each) and value == each for each in named)
    if type(value) is str and (
        "${" in value or value == "???"
    ):  # as OmegaConf writes what stands elsewhere, or nowhere
        return False
    plain = next((part for part in parts if part is not type(None)), kind)
    return type(value) is plain or (plain is float and type(value) is int and abs(value) <= EXACT)


def _converted(value: Any, kind: Any) -> Any:
    """Return a value that fits as the dataclasses hold it."""
    if typing.get_origin(kind) is tuple:
        return tuple(_converted(each, typing.get_args(kind)[0]) for each in value)
    return float(value) if type(value) is int and kind in (float, float | None) else value


@cache
def _schema() -> DictConfig:
    """Return what a configuration is merged into, which copies it: making it takes most of the time."""
    return typing.cast(DictConfig, OmegaConf.structured(Config))


def _first_mistake(layers: Sequence[dict[str, Any]], error: Exception) -> ConfigError:
    """Find the option that OmegaConf stumbled over, which its errors don't always name."""
    for layer in layers:
        for key, item, kind in options():
            section, _, name = key.partition(".")
            if name in layer.get(section, {}):
                value = layer[section][name]
                try:
                    OmegaConf.merge(_schema(), {section: {name: value}})
                except Exception:  # as above
                    return ConfigError(unlike(key, value, item, kind))
    return ConfigError(f"{getattr(error, 'full_key', None) or 'configuration'}: {_first_line(error)}")


def _check_keys(layer: dict[str, Any]) -> None:
    names = _names()
    for section, content in layer.items():
        if section not in names:
            known = [key for key, _, _ in options()]
            near = _elsewhere(section, known) or nearest(str(section), sorted(names), listing=False)
            hint = near or _like(str(section), known) or nearest(str(section), sorted(names))
            raise ConfigError(f"unknown section '{show(section)}' with value {show(content)}{hint}")
        if not isinstance(content, dict):
            example = next(entry for entry in options() if entry[0].startswith(f"{section}."))
            found = f"{section}={show(content)}"
            raise ConfigError(f"{found}: expected a section, as in {example[0]}={example[1].default}")
        for name, value in content.items():
            if name not in names[section]:
                known, beside = [key for key, _, _ in options()], names[section]
                near = nearest(str(name), beside, listing=False) or _elsewhere(name, known)
                hint = near or nearest(str(name), beside)
                raise ConfigError(f"unknown key '{section}.{show(name)}' with value {show(value)}{hint}")


@cache
def _names() -> dict[str, list[str]]:
    """Return the names of the options of each section."""
    names: dict[str, list[str]] = {}
    for key, _, _ in options():
        section, _, name = key.partition(".")
        names.setdefault(section, []).append(name)
    return names


FIELD = {
    "alpha": "data.beta",
    "concentration": "data.beta",
    "dataset": "data.source",
    "num_users": "data.clients",
    "users": "data.clients",
    "arch": "model.name",
    "architecture": "model.name",
    "lr": "training.learning_rate",
    "eta": "training.learning_rate",
    "optim": "training.optimizer",
    "algorithm": "strategy.name",
    "method": "strategy.name",
    "mu": "strategy.proximal_mu",
    "fraction_fit": "strategy.fraction_train",
    "gpu": "run.device",
    "t": "conversion.steps",
    "timesteps": "conversion.steps",
}
"""What others call an option."""


def _elsewhere(name: Any, known: Sequence[str]) -> str:
    """Return a hint at an option of this name in another section, or of another name in the field."""
    meant = FIELD.get(str(name).lower())
    there = [key for key in known if key.endswith(f".{name}")] or ([meant] if meant else [])
    return f"; did you mean {there[0]!r}?" if there else ""


def _like(name: str, known: Sequence[str]) -> str:
    """Return a hint at the option whose name without its section is similar."""
    short = {key.partition(".")[2]: key for key in reversed(known)}  # of several the first
    close = difflib.get_close_matches(name.lower(), short, n=1)
    return f"; did you mean {short[close[0]]!r}?" if close else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
