"""The setting of a Flower app that isn't ours: what its recording holds, and what whoever runs it says beside that.

What nobody says is unknown, which is a fact denied to the attacker, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from snnfl.attacks.networks import classes_of, last_linear
from snnfl.auditing.checked import check_truth
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.orders import flags_of, unrepeated_orders
from snnfl.auditing.recording import (
    RECORDING,
    SENT,
    Received,
    RecordingError,
    read_recording,
    read_truth,
    round_folder,
    truth_path,
)
from snnfl.auditing.setting import Setting
from snnfl.config import ConfigError
from snnfl.data import Dataset
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange, Knowledge
from snnfl.training import exchangeable
from snnfl.updates import Plain, UpdateFormat

SENT_NAMES = {
    "learning_rate": ("lr", "learning-rate", "learning_rate"),
    "batch_size": ("batch-size", "batch_size"),
    "epochs": ("local-epochs", "local_epochs", "epochs"),
    "momentum": ("momentum",),
    "weight_decay": ("weight-decay", "weight_decay"),
}
"""What apps call the options of local training in the configuration that they send: then the server knows them."""

CANDIDATES = 1000
"""Public images beyond which the rest are candidates of the identification."""


@dataclass(frozen=True, kw_only=True, eq=False)
class App:
    """What whoever runs an app says of it. ``None`` is unknown.

    Attributes:
        model: What clients train, by whatever weights.
        input_shape: Of one image, ``(C, H, W)``.
        mean: Of the normalisation ``x = (pixel - mean) / std`` with pixels in [0, 1]: one value per channel.
        std: As ``mean``.
        loss: Name of what clients minimise; attacks repeat ``"cross_entropy"``.
        optimizer: Its name; attacks repeat ``"sgd"``.
        learning_rate: Of local training.
        batch_size: Images per step.
        epochs: Passes over the images.
        momentum: Of SGD.
        weight_decay: L2 coefficient.
        public: Pixels in [0, 1] of images that aren't the clients', ``[M, C, H, W]``.
        truth: Folder of what nodes tell.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss: str | None = None
    optimizer: str = "sgd"
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    public: Tensor | None = None
    truth: Path | None = None


def setting_of_app(app: App, folder: Path) -> Setting:
    """Return what an audit must know of an app.

    Args:
        app: What whoever runs it says.
        folder: The recording.

    Raises:
        ConfigError: For a model that attacks cannot repeat, or that doesn't fit the shape of the images, and where the
            folder of the truth isn't there.
        RecordingError: If the recording isn't there or is damaged, or holds another model's arrays.
    """
    check_model(app)
    if app.truth is not None and not app.truth.is_dir():
        raise ConfigError(f"--truth {app.truth}: no such folder")
    first = next(read_recording(folder), None)
    if first is None:
        raise RecordingError(f"{folder}: no update is recorded")
    state = {name: array.detach().cpu().float() for name, array in exchangeable(app.model).items()}
    format = Plain(state)
    _of_model(app.model, first.exchange.sent, format, round_folder(folder / RECORDING, first.server_round) / SENT)
    return Setting(
        name=folder.resolve().name,
        algorithm=str(first.about.get("strategy", "unknown")),
        seed=0,
        dataset=_dataset(app),
        model=app.model,
        format=format,
        initial_state=state,
        knowledge=partial(knowledge_of_app, app),
        beyond=partial(_beyond, app),
        recorded=partial(_recorded, app, format),
        told=partial(_told, app),
        labelled=False,
    )


def check_model(app: App) -> None:
    """Check that attacks can differentiate a model, on images of the stated shape.

    Raises:
        ConfigError: Naming what is in the way.
    """
    known = {*exchangeable(app.model)}
    for name, _ in app.model.named_buffers():
        if name not in known and not name.endswith("num_batches_tracked"):
            raise ConfigError(f"--model: attacks cannot repeat its buffer {name!r}; make it a constant of forward")
    if len(shared := _shared(app.model)) > 1:
        raise ConfigError(f"--model: attacks cannot repeat weights that layers share, as {' and '.join(shared)} do")
    for option in ("mean", "std"):
        if len(getattr(app, option)) not in (1, app.input_shape[0]):
            raise ConfigError(f"--{option}: {len(getattr(app, option))} values for {app.input_shape[0]} channels")
    if not all(0 < value < math.inf for value in app.std) or not all(map(math.isfinite, app.mean)):
        raise ConfigError(f"--mean and --std: {app.mean} and {app.std}; expected finite numbers, and std above 0")
    shape = ",".join(map(str, app.input_shape))
    try:
        with torch.no_grad():
            found = app.model.eval()(torch.zeros(2, *app.input_shape))
        outputs = (2, classes_of(app.model))
    except Exception as error:  # of somebody else's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--input-shape {shape}: --model fails on it ({reason})") from None
    if not isinstance(found, Tensor) or tuple(found.shape) != outputs:
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"--model: of two images it makes {what}; expected logits {list(outputs)} of a last linear layer"
        )
    if not _answers(app, found):
        name = last_linear(app.model)
        raise ConfigError(
            f"--model: {name!r}, its last linear layer, doesn't make its logits; define that which does behind it"
        )
    if not _follows_pixels(app):
        raise ConfigError("--model: its logits have no derivative by the pixels, without which no attack finds any")


def _shared(model: nn.Module) -> list[str]:
    """Return the names of the first parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return next((each for each in names.values() if len(each) > 1), [])


def _answers(app: App, logits: Tensor) -> bool:
    """Tell whether a model's answer is that of its last linear layer: whether it is another one if that layer's is.

    Of a layer that is called otherwise than once, on an image as a whole, it is taken to be.
    """
    layer, others = app.model.get_submodule(last_linear(app.model)), (logits.argmax(1) + 1) % logits.shape[1]
    calls = list[Tensor]()

    def answer(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        calls.append(made)
        return nn.functional.one_hot(others, logits.shape[1]).to(made) * 10 if made.shape == logits.shape else made

    handle = layer.register_forward_hook(answer)
    try:
        with torch.no_grad():
            found: Tensor = app.model(torch.zeros(2, *app.input_shape))
    finally:
        handle.remove()
    if len(calls) == 1 and calls[0].shape == logits.shape:
        return torch.equal(found.argmax(1), others)
    return bool(calls)


def _follows_pixels(app: App) -> bool:
    """Tell whether a model's logits can be differentiated by its inputs."""
    images = torch.zeros(2, *app.input_shape, requires_grad=True)
    with torch.enable_grad():
        logits = app.model(images)
        if not logits.requires_grad:
            return False
        try:
            (slopes,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
        except Exception:  # of somebody else's code
            return False
    return slopes is not None


def knowledge_of_app(app: App, received: Received, labels: bool, denied: Iterable[str]) -> Knowledge:
    """Return the threat model: what the app's owner says, what the server sent, and the reply's number of images."""
    facts, images = facts_of(app, received), _whole(received.metrics.get(EXAMPLES))
    batch = _whole(facts["batch_size"])
    if batch is not None and images is not None and "images" not in denied:
        batch = min(batch, images)
    return Knowledge(
        loss=app.loss is not None,
        labels=labels,
        images=images,
        batch_size=batch,
        epochs=_whole(facts["epochs"]),
        learning_rate=facts["learning_rate"],
        momentum=facts["momentum"],
        weight_decay=facts["weight_decay"],
        thresholds=False,
        initial_weights=False,
        # Flower's clipping counts batch normalisation's counters into the norm, and these aren't in the exchange.
        **flags_of(received, whole={*app.model.state_dict()} == {*exchangeable(app.model)}),
    ).without(denied)


def facts_of(app: App, received: Received) -> dict[str, float | None]:
    """Return the options of local training: as the owner says, else as the recorded messages said to the clients."""
    found: dict[str, float | None] = {name: getattr(app, name) for name in SENT_NAMES}
    return {name: sent_fact(received, name) if value is None else value for name, value in found.items()}


def sent_fact(received: Received, fact: str) -> float | None:
    """Return an option of local training that the server sent along with the arrays, or ``None``."""
    config = received.about.get("config")
    sent = [config.get(name) for name in SENT_NAMES[fact]] if isinstance(config, Mapping) else []
    numbers = [value for value in sent if isinstance(value, int | float) and not isinstance(value, bool)]
    zero = fact in ("momentum", "weight_decay")
    return next((value for value in numbers if 0 <= value < math.inf and (value or zero)), None)


def unknown(app: App, received: Received) -> list[str]:
    """Return the options of the command that would tell what the attacker doesn't know."""
    missing = [name for name, value in facts_of(app, received).items() if value is None]
    return [f"--{name.replace('_', '-')}" for name in ([] if app.loss else ["loss"]) + missing]


def _whole(value: object) -> int | None:
    """Return a count that somebody claims, or ``None`` for what is none."""
    whole = isinstance(value, int | float) and 1 <= value < 2**53 and value == int(value)
    return int(value) if whole else None  # type: ignore[call-overload]


def _beyond(app: App, received: Received) -> tuple[str, ...]:
    """Say what of a client's training attacks don't repeat."""
    batch, images = _whole(facts_of(app, received)["batch_size"]), _whole(received.metrics.get(EXAMPLES))
    single = batch is not None and images is not None and images > batch > 1 and images % batch == 1
    unlike = tuple(
        option
        for option, differs in {
            f"--optimizer {app.optimizer}": app.optimizer != "sgd",
            f"a last batch of one image ({images} in batches of {batch})": single,
        }.items()
        if differs
    )
    return (*unlike, *unrepeated_orders(received))


def _recorded(app: App, format: UpdateFormat, folder: Path, rounds: frozenset[int]) -> Iterator[Received]:
    """Read a recording as arrays of the model, without the clients that sent something else (:func:`unfit`).

    Raises:
        RecordingError: If what the server sent isn't of the model.
    """
    for each in read_recording(folder, rounds):
        sent = _of_model(app.model, each.exchange.sent, format, f"{folder.name}, round {each.server_round}, sent")
        try:
            received = _of_model(app.model, each.exchange.received, format, _place(folder, each))
        except RecordingError:
            continue
        exchange = Exchange(server_round=each.server_round, sent=sent, received=received)
        metrics = each.metrics if isinstance(each.metrics, dict) else {}
        yield replace(each, exchange=exchange, metrics=metrics)


def unfit(app: App, folder: Path, rounds: frozenset[int]) -> list[str]:
    """Say of each client that sent something that isn't of the model what it sent, a line for each message.

    Raises:
        RecordingError: If the recording is damaged.
    """
    format, lines = Plain({name: array.float() for name, array in exchangeable(app.model).items()}), list[str]()
    for each in read_recording(folder, rounds):
        try:
            _of_model(app.model, each.exchange.received, format, _place(folder, each))
        except RecordingError as error:
            lines.append(str(error))
    return lines


def _place(folder: Path, received: Received) -> str:
    return f"{folder.name}, round {received.server_round}, node {received.partition}"


def _of_model(model: nn.Module, arrays: Mapping[str, Tensor], format: UpdateFormat, where: object) -> dict[str, Tensor]:
    """Return recorded arrays under the model's names, as float32, without counters.

    Apps send a state dictionary, or its arrays in their order without their names.

    Raises:
        RecordingError: Naming the first array that isn't the model's.
    """
    names = list(model.state_dict())
    if {*arrays} == {str(index) for index in range(len(arrays))} != {*names} and len(arrays) == len(names):
        arrays = {name: arrays[str(index)] for index, name in enumerate(names)}
    if missing := [name for name in format.specs if name not in arrays]:
        raise RecordingError(f"{where}: lacks {missing[0]!r}, which --model has")
    if surplus := [name for name in arrays if name not in names]:
        raise RecordingError(f"{where}: holds {surplus[0]!r}, which --model hasn't")
    found = {name: arrays[name].float() for name in format.specs}
    for name, array in found.items():
        if (mistake := format.specs[name].mistake(array)) is not None:
            raise RecordingError(f"{where}: {name!r} doesn't fit --model: {mistake}")
    return found


def _told(app: App, folder: Path, server_round: int, node: int) -> GroundTruth | None:
    """Read what a node's owner hands over.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    if app.truth is None or (truth := read_truth(app.truth, server_round, node)) is None:
        return None
    path = truth_path(app.truth, server_round, node)
    check_truth(path, truth, app.input_shape, classes_of(app.model))
    return truth


def _dataset(app: App) -> Dataset:
    """Return normalisation and classes, with the public images that there are."""
    shape, classes = app.input_shape, classes_of(app.model)
    given = torch.empty(0, *shape) if app.public is None else app.public
    stored = (given * 255).round().to(torch.uint8)
    public = stored[: min(CANDIDATES, (len(stored) + 1) // 2)]
    others = stored[len(public) :]
    mean, std = (torch.tensor(values).expand(shape[0]).clone() for values in (app.mean, app.std))
    return Dataset(
        name="public images",
        train_images=others,
        train_labels=torch.zeros(len(others), dtype=torch.int64),
        test_images=public,
        test_labels=torch.zeros(len(public), dtype=torch.int64),
        class_names=tuple(map(str, range(classes))),
        mean=mean,
        std=std,
    )
