"""One frozen dataclass per concept, merged from YAML and ``key=value`` by OmegaConf.

A configuration is written in four places that must agree: this file, a YAML file, the command line, and
Flower's flat ``run_config``. This module is the only one that converts between them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf

FlatValue: TypeAlias = bool | int | float | str
"""What Flower's ``run_config`` can carry."""


class ConfigError(ValueError):
    """A mistake in a configuration, in one line: the key, the value, what was expected, the nearest name."""


def option(
    default: Any, *, doc: str, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a field with its documentation and its range.

    Args:
        default: Default value.
        doc: One line, with the unit or the source.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: The value must be strictly larger than this.

    Returns:
        A dataclass field. :func:`validate` enforces the range.
    """
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "above": above})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run itself."""

    name: str = option("run", doc="results are written to DIRECTORY/NAME")
    directory: str = option("runs", doc="folder that holds the runs")
    overwrite: bool = option(False, doc="replace the results of an earlier run of the same name")
    seed: int = option(0, low=0, high=2**32 - 1, doc="decides partitions, initial weights, batches and selection")
    rounds: int = option(10, low=1, doc="global communication rounds")
    threads: int = option(1, low=1, high=1024, doc="torch threads per process; only equal numbers give equal bits")
    device: str = option("cpu", doc="torch device of every client and the server: cpu, cuda, cuda:0, ...")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how it is divided among the clients."""

    source: str = option(
        "digits",
        doc="digits, mnist, fashion_mnist, cifar10, cifar100, tiny_imagenet, iris or breast_cancer",
    )
    root: str | None = option(None, doc="folder of downloaded data sets; null: SNNFL_DATA, else ~/.cache/snnfl")
    clients: int = option(10, low=1, doc="number of clients, each with one partition")
    partition: Literal["iid", "dirichlet", "quantity", "pathological"] = option(
        "iid", doc="iid; dirichlet over labels; dirichlet over quantities (SNFL 5.2); classes per client"
    )
    beta: float = option(0.5, above=0.0, doc="concentration of either Dirichlet; smaller is more unbalanced")
    classes_per_client: int = option(2, low=1, doc="of the pathological partition")
    minimum_samples: int = option(10, low=1, doc="a client with fewer training samples is an error")
    augment: bool = option(False, doc="random crop (padding 4, digits 1) and, of photographs, horizontal flip")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network that clients train."""

    name: str = option("lenet5", doc="lenet5, convnet, resnet20, resnet20_snfl, vgg16 or mlp")
    conv_bias: bool = option(False, doc="whether convolutions followed by batch normalisation have a bias")
    batch_norm: bool = option(True, doc="batch normalisation in lenet5, convnet and mlp")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local training by SGD."""

    epochs: int = option(5, low=1, doc="local epochs per round")
    batch_size: int = option(64, low=1, doc="local minibatch size")
    learning_rate: float = option(0.1, above=0.0, doc="before the schedule")
    momentum: float = option(0.9, low=0.0, high=1.0, doc="of SGD; its buffer starts anew each round")
    weight_decay: float = option(1e-5, low=0.0, doc="L2 coefficient")
    milestones: tuple[int, ...] = option((61, 96), doc="rounds from which the rate is multiplied by `decay` (SNFL 5.2)")
    decay: float = option(0.1, above=0.0, high=1.0, doc="factor at each milestone")


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """How a client turns its ANN into a spiking network (SNFL, Algorithm 1, ANN-TO-SNN).

    The defaults are the paper's mode. For few time steps there is :meth:`fast`; in a YAML file it is written out as
    ``conversion: {steps: 32, thresholds: channel_mmse, initial_potential: half, calibration: bias}``.
    """

    steps: int = option(32, low=1, doc="simulation length T")
    thresholds: Literal["layer_mmse", "channel_mmse", "layer_max", "percentile"] = option(
        "layer_mmse",
        doc="one per layer (the paper) or per channel, by grid search of the MMSE; largest activation; its percentile",
    )
    candidates: int = option(95, low=1, high=99, doc="thresholds that the MMSE search tries: max * (1 - 0.01 i)")
    percentile: float = option(99.9, above=0.0, high=100.0, doc="percentage of a layer's activations, zeros included")
    calibration: Literal["none", "bias", "potential", "bias_potential", "time_bias"] = option(
        "bias",
        doc="what absorbs the conversion error: biases (eq. 6), initial potentials, both, or a bias per time step",
    )
    initial_potential: Literal["zero", "half", "drip"] = option(
        "zero", doc="membrane potential at t=0: zero (the paper), half a threshold, or half of one dripped in over T"
    )
    calibration_images: int = option(128, low=1, doc="private images of the client that calibrate")
    calibration_steps: int | None = option(
        None, low=1, doc="length that thresholds and calibration are computed for; null: steps"
    )
    max_bytes: int = option(
        900_000_000, low=1, doc="ceiling of the conversion's memory: activations, spike trains, currents and buffers"
    )
    minimum_scale: float = option(
        1e-6, above=0.0, doc="|gamma/sigma| below which a channel's weight cannot be recovered from the folded one"
    )

    @classmethod
    def fast(cls, steps: int = 32) -> ConversionConfig:
        """Return the options that reach the ANN's accuracy at T of 16 to 32, where the paper's mode needs hundreds.

        A threshold per channel, a start at half of it, and calibrated biases. Measured: see docs/performance.md.
        """
        return cls(steps=steps, thresholds="channel_mmse", initial_potential="half", calibration="bias")

    @property
    def calibration_length(self) -> int:
        """Time steps that thresholds and calibration are computed for."""
        return self.steps if self.calibration_steps is None else self.calibration_steps


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """What the server does with the updates."""

    name: str = option("fedavg", doc="Flower strategy that aggregates")
    spiking: bool = option(True, doc="the S-variant: updates are converted, the server holds a spiking network")
    bias_back: bool = option(False, doc="whether the server returns biases (SNFL, Table 3); the paper: no")
    fraction_train: float = option(1.0, above=0.0, high=1.0, doc="part of the clients selected per round")
    fraction_evaluate: float = option(
        0.0, low=0.0, high=1.0, doc="part of the clients that test the received model with their own biases"
    )
    timeout: float = option(3600.0, above=0.0, doc="seconds that the server waits for the replies of a round")
    minimum_replies: int = option(1, low=1, doc="with fewer valid replies a round keeps the old weights")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured after a round, on the test set."""

    images: int = option(
        0, low=0, doc="test images per evaluation before the last round; 0: all. The last round uses all"
    )
    clients: bool = option(True, doc="evaluate each client's own ANN after its local training")
    batch_size: int = option(256, low=1, doc="images per forward pass")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    conversion: ConversionConfig = field(default_factory=ConversionConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def options(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield ``(key, field, type)`` for every option, keys dotted, in order of declaration."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from options(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, hints[item.name]


def compose(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults, a YAML file and ``key=value`` overrides.

    Args:
        path: YAML file, or ``None`` for the defaults.
        overrides: For example ``["data.clients=5", "training.milestones=[10,20]"]``.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: For a missing or malformed file, an unknown key, a wrong type or a value out of range.
    """
    layers = [] if path is None else [_raw(_read(Path(path)))]
    for item in overrides:
        key, separator, _ = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {item!r}: expected key=value, for example data.clients=5")
        try:
            layers.append(_raw(OmegaConf.from_dotlist([item])))
        except Exception as error:  # OmegaConf passes on whatever its YAML grammar raises
            raise ConfigError(f"override {item!r}: not a YAML value ({_first_line(error)})") from None
    return _merge(layers)


def flatten(config: Config) -> dict[str, FlatValue]:
    """Write a configuration as Flower's flat ``run_config``: lists and nulls become JSON text."""

    def encode(value: Any) -> FlatValue:
        return json.dumps(value) if value is None or isinstance(value, tuple) else value

    return {key: encode(_get(config, key)) for key, _, _ in options()}


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
            raise ConfigError(f"{_show(key)}={_show(value)}: a run config holds plain values, no interpolation")
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
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def validate(config: Config) -> None:
    """Check every option's range.

    Raises:
        ConfigError: Naming the key, the value and the range.
    """
    for key, item, _ in options():
        value = _get(config, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: expected a finite number")
        for bound, holds, words in (
            (item.metadata["low"], operator.ge, "at least"),
            (item.metadata["high"], operator.le, "at most"),
            (item.metadata["above"], operator.gt, "more than"),
        ):
            if bound is not None and value is not None and not holds(value, bound):
                raise ConfigError(f"{key}={value}: expected {words} {bound} ({item.metadata['doc']})")
    name = config.run.name
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise ConfigError(f"run.name={name!r}: expected a plain folder name, without '/'")
    needed, clients = config.strategy.minimum_replies, config.data.clients
    if needed > clients:
        raise ConfigError(f"strategy.minimum_replies={needed}: expected at most data.clients={clients}")


def nearest(name: str, known: Sequence[str], *, listing: bool = True) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known name, else the list of all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if listing else ""


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), siblings, n=1, cutoff=0.0)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # YAML, encoding and permission errors alike are the file's fault
        raise ConfigError(f"{path}: cannot be read as YAML ({_first_line(error)})") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of sections such as run, data and model, found a list")
    return loaded


def _raw(layer: DictConfig) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))


def _merge(layers: Sequence[dict[str, Any]]) -> Config:
    for layer in layers:
        _check_keys(layer)
    schema = OmegaConf.structured(Config)
    try:
        config = typing.cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, *layers)))
    except Exception as error:  # OmegaConf raises its own, ValueError, TypeError and its grammar's errors
        raise _first_mistake(layers, error) from None
    validate(config)
    return config


def _first_mistake(layers: Sequence[dict[str, Any]], error: Exception) -> ConfigError:
    """Find the option that OmegaConf stumbled over, which its errors don't always name."""
    for layer in layers:
        for key, item, kind in options():
            section, _, name = key.partition(".")
            if name in layer.get(section, {}):
                value = layer[section][name]
                try:
                    OmegaConf.merge(OmegaConf.structured(Config), {section: {name: value}})
                except Exception:  # as above
                    return _explain(key, value, item, kind)
    return ConfigError(f"{getattr(error, 'full_key', None) or 'configuration'}: {_first_line(error)}")


def _check_keys(layer: dict[str, Any]) -> None:
    known = [key for key, _, _ in options()]
    sections = sorted({key.partition(".")[0] for key in known})
    for section, content in layer.items():
        if section not in sections:
            meant = [key for key in known if key.endswith(f".{section}")]
            hint = f"; did you mean {meant[0]!r}?" if meant else nearest(str(section), sections)
            raise ConfigError(f"unknown section '{_show(section)}' with value {_show(content)}{hint}")
        if not isinstance(content, dict):
            example = next(entry for entry in options() if entry[0].startswith(f"{section}."))
            found = f"{section}={_show(content)}"
            raise ConfigError(f"{found}: expected a section, as in {example[0]}={example[1].default}")
        names = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
        for name, value in content.items():
            if name not in names:
                hint = nearest(str(name), names)
                raise ConfigError(f"unknown key '{section}.{_show(name)}' with value {_show(value)}{hint}")


def _explain(key: str, value: Any, item: dataclasses.Field[Any], kind: Any) -> ConfigError:
    if typing.get_origin(kind) is not Literal:
        return ConfigError(f"{key}={_show(value)}: expected {_type_name(kind)} ({item.metadata['doc']})")
    names = [str(name) for name in typing.get_args(kind)]
    hint = nearest(str(value), names, listing=False)
    return ConfigError(f"{key}={_show(value)}: expected one of {', '.join(names)}{hint}")


def _show(value: Any) -> str:
    """Write a value in one line of moderate length."""
    line = " ".join(str(value).split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _type_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        int | None: "a whole number or null",
        float: "a number",
        bool: "true or false",
        str: "text",
        str | None: "text or null",
    }
    return names.get(kind, "a list of whole numbers")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
