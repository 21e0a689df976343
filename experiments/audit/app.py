"""``snnfl audit RECORDING --model …``: the audit of a Flower app that isn't ours, from what the command says of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from experiments.audit.choice import check_names, choose
from experiments.audit.command import NO_THRESHOLDS, Prepared, audit_prepared
from experiments.audit.found import Audit
from snnfl.attacks import Budget
from snnfl.auditing.foreign import SENT_NAMES, App, sent_fact, setting_of_app, unfit, unknown
from snnfl.auditing.label_counts import label_counts
from snnfl.auditing.recording import RecordingError, check_rounds, read_recording
from snnfl.auditing.victims import Scope, pixel_statistics, victims_of
from snnfl.config import ConfigError, DataConfig, nearest
from snnfl.data import Dataset, check_source, load

NO_TEST_SAMPLES = "needs test samples, and the recording of another app has none"

LOSSES = ("cross_entropy",)
"""What attacks differentiate."""


def app_of(
    model: str,
    *,
    data: str | None = None,
    input_shape: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    loss: str | None = None,
    **facts: Any,
) -> App:
    """Return what the options of the command say of an app.

    Args:
        model: ``MODULE:FACTORY`` or ``FILE.py:FACTORY``: called without arguments, it returns what clients train.
        data: Public images: a data set of ours, or ``MODULE:LOADER``, which returns them.
        input_shape: ``C,H,W``; that of the public images if it isn't given.
        mean: Of the pixels' normalisation, numbers with commas; that of a data set of ours if it isn't given.
        std: Likewise.
        loss: What clients minimise; ``None`` is unknown.
        facts: Of local training, as the attributes of :class:`~snnfl.auditing.foreign.App`.

    Raises:
        ConfigError: For a mistake in one of them, naming the option.
    """
    if loss is not None and loss not in LOSSES:
        raise ConfigError(f"--loss {loss}: attacks repeat {' and '.join(LOSSES)}; leave the option out to say unknown")
    network = _called("--model", model)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"--model {model}: returns {type(network).__name__}; expected a torch.nn.Module")
    dataset, public = _public(data)
    shape = _shape(input_shape) if input_shape is not None else None if public is None else tuple(public.shape[1:])
    if shape is None:
        raise ConfigError("--input-shape: say the shape of an image, such as 3,32,32, or give --data")
    if public is not None and tuple(public.shape[1:]) != shape:
        raise ConfigError(f"--input-shape {input_shape}: images of --data {data} are {list(public.shape[1:])}")
    own = (None, None) if dataset is None else tuple(tuple(v.tolist()) for v in pixel_statistics(dataset))
    return App(
        model=network,
        input_shape=shape,
        mean=_numbers("mean", mean, own[0]),
        std=_numbers("std", std, own[1]),
        loss=loss,
        public=public,
        **facts,
    )


def app_of_options(model: str | None, said: Mapping[str, Any]) -> App | None:
    """Return what the command says of another app; ``None`` if it audits runs of ours.

    Raises:
        ConfigError: As :func:`app_of`, and for options of an app without ``--model``.
    """
    if model is not None:
        return app_of(model, **said)
    if said:
        option = next(iter(said)).replace("_", "-")
        raise ConfigError(f"--{option}: a run of ours knows it; for another Flower app's recording say --model, too")
    return None


def generative_model_of(text: str | None) -> nn.Module | None:
    """Return the generative model that an option names, ready to draw, if it names any.

    Raises:
        ConfigError: If it isn't there, fails or is no module.
    """
    if text is None:
        return None
    model = _called("--generative-model", text)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--generative-model {text}: returns {type(model).__name__}; expected a torch.nn.Module")
    return model.eval().requires_grad_(False)


def audit_app(
    folders: Sequence[Path],
    app: App,
    attacks: Sequence[str],
    scope: Scope,
    budget: Budget,
    *,
    side_channel: bool = False,
    output: Path | None,
    console: Console,
) -> tuple[Path, list[Audit]]:
    """Attack another app's recording and write the report, as :func:`~experiments.audit.command.audit_runs` does.

    Raises:
        ConfigError: For more than one recording, an unknown attack, a model that attacks cannot repeat, or
            ``side_channel``.
        RecordingError: As :func:`prepare_app`.
    """
    if len(folders) != 1:
        raise ConfigError(f"--model: is of one recording, and there are {len(folders)}: audit them one by one")
    if side_channel:
        raise ConfigError(f"--side-channel: {NO_THRESHOLDS}; leave it out with --model")
    prepared = prepare_app(folders[0], app, attacks, scope)
    return audit_prepared([prepared], attacks, budget, output=output, console=console)


def prepare_app(folder: Path, app: App, attacks: Sequence[str], scope: Scope) -> Prepared:
    """Read and check all that an audit of another app needs, before anything is attacked.

    Raises:
        ConfigError: For an unknown attack, colluding clients or differences, or a model that attacks cannot repeat.
        RecordingError: If the folder holds no recording, or something of it is damaged or of another model.
        ThreatModelError: If labels are granted that no node told.
    """
    check_names(attacks)
    if scope.colluding or scope.differences:
        asked = "--differences" if scope.differences else f"--colluding {scope.colluding}"
        raise ConfigError(f"{asked}: is of runs of ours with secure aggregation; leave it out with --model")
    if not folder.is_dir():
        raise RecordingError(f"{folder}: no such folder; give that of the recording")
    check_rounds(folder, scope.rounds)
    setting = setting_of_app(app, folder)
    unread = [line.removeprefix(f"{folder.name}, ") for line in unfit(app, folder, scope.rounds)]
    try:
        victims = victims_of(setting, folder, scope)
    except RecordingError as error:
        if not unread:
            raise
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        raise RecordingError(f"{error}; not attacked: {unread[0]}{more}") from None
    choice = choose(attacks, setting.format.kind)
    named = choice.members if attacks else ()
    return Prepared(
        path=folder,
        folder=folder,
        setting=setting,
        config=None,
        metrics=(),
        environment={},
        victims=victims,
        twins=(),
        choice=replace(choice, members=(), left={**choice.left, **dict.fromkeys(named, NO_TEST_SAMPLES)}),
        controls=False,
        notes=[*_notes(folder, app), *(f"not attacked: {line}" for line in unread)],
        unread=unread,
        denied=scope.denied,
        biases=(),
        labels=label_counts(victims, setting.seed),
        side=(),
        judged=(),
        thresholds=(),
    )


def _notes(folder: Path, app: App) -> list[str]:
    """Say what the attacker doesn't know, and what the messages told it."""
    first = next(read_recording(folder))
    lines = list[str]()
    told = {name: sent_fact(first, name) for name in SENT_NAMES if getattr(app, name) is None}
    if known := [f"{name}={value:g}" for name, value in told.items() if value is not None]:
        lines.append(f"as the server told its clients: {', '.join(known)}")
    for name in SENT_NAMES:
        said, sent = getattr(app, name), sent_fact(first, name)
        if said is not None and sent is not None and said != sent:
            option = f"--{name.replace('_', '-')}"
            lines.append(
                f"{option} {said:g} counts, though the server told its clients {sent:g}; leave {option} out to take "
                "what it told"
            )
    if missing := unknown(app, first):
        lines.append(f"not given, so the attacker doesn't know it: {', '.join(missing)}")
        if {"--momentum", "--weight-decay"} & {*missing}:
            lines.append(
                "attacks that need the fact optimizer, as all of several local steps, want both --momentum and "
                "--weight-decay"
            )
    dropout = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    if dropped := [name for name, module in app.model.named_modules() if isinstance(module, dropout) and module.p]:
        lines.append(f"attacks leave out the dropout of {dropped[0]}, so clients may leak more than they find")
    if app.truth is None:
        lines.append("without --truth there are pictures, and no scores")
    return lines


def _public(data: str | None) -> tuple[Dataset | None, Tensor | None]:
    """Return a data set of ours, if it is one, and public images as pixels in [0, 1]."""
    if data is None:
        return None, None
    if ":" not in data:
        check_source(data, said=f"--data {data}")
        dataset = load(DataConfig(source=data))
        if dataset.kind != "images":
            raise ConfigError(f"--data {data}: holds {dataset.kind}, and of another app images alone are reconstructed")
        return dataset, dataset.pixels(dataset.test_images)
    found = _called("--data", data)
    try:
        images = torch.as_tensor(found[0] if isinstance(found, tuple) else found)
    except Exception as error:  # of whatever else somebody's function returns
        raise ConfigError(f"--data {data}: returns no images ({' '.join(str(error).split())})") from None
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if pixels.dim() != 4 or not len(pixels) or not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
        raise ConfigError(f"--data {data}: expected images [M, C, H, W] as uint8, or as pixels in [0, 1]")
    return None, pixels


def _called(option: str, text: str) -> Any:
    """Call what an option names, without arguments.

    Raises:
        ConfigError: If it isn't there or fails.
    """
    place, separator, name = text.rpartition(":")
    if not separator or not name.isidentifier():
        raise ConfigError(f"{option} {text}: expected MODULE:FUNCTION, such as task:Net, or FILE.py:FUNCTION")
    try:
        module = _module(place)
        if not hasattr(module, name):
            own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ConfigError(f"{option} {text}: {place} has no {name}{nearest(name, own)}")
        made: Callable[[], Any] = getattr(module, name)
        return made()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # of somebody else's code
        raise ConfigError(f"{option} {text}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _module(place: str) -> Any:
    """Import a module as Python does in the current folder, or a file with what lies beside it."""
    path = Path(place).expanduser()
    folder, name = (path.absolute().parent, path.stem) if place.endswith(".py") else (Path.cwd(), place)
    if place.endswith(".py") and not path.is_file():
        raise FileNotFoundError(f"{place}: no such file")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--input-shape {text}: expected channels, height and width, such as 3,32,32")
    return tuple(map(int, parts))


def _numbers(option: str, text: str | None, known: tuple[float, ...] | None) -> tuple[float, ...]:
    """Read numbers; return those that are known where none are given.

    Raises:
        ConfigError: Where neither is, or something is no number.
    """
    if text is None:
        if known is None:
            way = "such as 0.5, or 0 and 1 where pixels aren't normalised"
            raise ConfigError(f"--{option}: say how clients normalise their pixels of [0, 1], {way}")
        return known
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise ConfigError(f"--{option} {text}: expected numbers with commas, such as 0.5,0.5,0.5") from None
