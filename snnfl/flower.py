"""For a Flower app that isn't ours: keep what its server sees, for ``snnfl audit`` to attack.

::

    from snnfl.flower import Audited

    strategy = Audited(FedAvg(), "recorded")            # in the ServerApp; nothing else changes

    from snnfl.flower import ground_truth

    app = ClientApp(mods=[ground_truth(own_images)])    # in the ClientApp of a node that consents to be scored

Here alone snnfl imports Flower: whoever audits an app of their own needs none of our engines, and no package of theirs
is hidden. ``docs/how-to/audit-your-flower-app.md`` shows both at work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from snnfl import npy
from snnfl.auditing.ground_truth import MAXIMUM_IMAGES, GroundTruth
from snnfl.auditing.recording import RECORDING, Recording, write_truth
from snnfl.protocol import ARRAYS, EXAMPLES, SERVER_ROUND, TRUTH_DIRECTORY

logger = logging.getLogger(__name__)

MAXIMUM_ARRAYS = 10_000
"""Arrays that an update may have."""

MAXIMUM_GROWTH = 4
"""How many times as large as what was sent an update may be, to be recorded: one node shall not use up the disk."""

MAXIMUM_ENTRIES, MAXIMUM_TEXT = 100, 200
"""Metrics or options of a message, and characters of a name or a text, that are recorded."""

WATCHED = ("configure_train", "aggregate_train")
"""What of a strategy is recorded."""

Received: TypeAlias = tuple[Mapping[str, Tensor], Mapping[str, float]]
"""Arrays and metrics of an update."""


class Audited(Strategy):
    """Record what a strategy sends and receives, and change nothing of it.

    Replies are recorded as they arrive, before anything is aggregated. Whatever goes wrong with the recording, a full
    disk or a reply that cannot be read, is a warning in the log; the run goes on as if nobody watched. The strategy
    plays its rounds by its own ``start``, and has its own attributes: ``audited.anything`` is ``strategy.anything``.

    Args:
        strategy: Any strategy of Flower's message API, of whatever wrappers.
        folder: Where the recording goes, for its owner alone: it tells the clients' data to whoever can attack. One
            that holds an earlier recording is left as it is, and its name with a number is taken.
        max_bytes: Size at which the recording stops.
        rounds: Those to record, counted from 1; empty for all.
        nodes: Node ids of the clients to record; empty for all.
    """

    OWN: ClassVar = frozenset({"strategy", "recording", "_own", "_expected"})
    """Attributes that aren't the strategy's."""

    def __init__(
        self,
        strategy: Strategy,
        folder: str | Path,
        *,
        max_bytes: int = 2_000_000_000,
        rounds: Iterable[int] = (),
        nodes: Iterable[int] = (),
    ) -> None:
        self.strategy = strategy
        self._own = {name: getattr(strategy, name) for name in WATCHED}
        place = self.place(Path(folder).expanduser())
        self.recording = Recording(place, max_bytes, frozenset(rounds), frozenset(nodes))
        self._expected: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """Return the strategy's own attribute, where this wrapper has none of that name."""
        if name.startswith("__") or "strategy" not in vars(self):
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the strategy's own attribute, likewise."""
        if "strategy" in vars(self) and name not in self.OWN:
            setattr(self.strategy, name, value)
        else:
            super().__setattr__(name, value)

    def start(self, *args: Any, **options: Any) -> Result:
        """Let the strategy play its rounds by its own loop, and watch what it configures and aggregates."""
        attributes = vars(self.strategy)
        before = {name: attributes[name] for name in WATCHED if name in attributes}
        attributes.update({name: getattr(self, name) for name in WATCHED})
        try:
            return self.strategy.start(*args, **options)
        finally:
            for name in WATCHED:
                del attributes[name]
            attributes.update(before)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Record what is sent."""
        messages = list(self._own["configure_train"](server_round, arrays, config, grid))
        self._safely(f"round {server_round}: what is sent", self.sending, server_round, messages, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record what is received, before a strategy that empties the records gets it."""
        arrived = list(replies)
        for reply in arrived:
            self._safely(f"round {server_round}: a reply", self._receiving, server_round, reply)
        arrays, metrics = self._own["aggregate_train"](server_round, arrived)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pass on."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Pass on."""
        self.strategy.summary()

    def place(self, folder: Path) -> Path:
        """Return where the recording goes: ``folder``, or beside it where that holds an earlier one."""
        number, place = 1, folder.absolute()
        while os.path.exists(place / RECORDING):  # unlike that of Path, it raises nothing
            number += 1
            place = folder.absolute().with_name(f"{folder.name}-{number}")
        logger.warning("what the server sends and receives is recorded in %s", place)
        return place

    def sending(self, server_round: int, messages: list[Message], grid: Grid) -> None:
        """Record a round's messages: once what all get, and what a single node gets where that differs."""
        self._expected = {}
        if not messages or not self.recording.wants(server_round):
            return
        of_all = self.arrays_of(messages[0])
        about = {"strategy": type(self.strategy).__name__, "config": config_of(messages[0].content)}
        self.recording.write_sent(server_round, _read(of_all), about)
        for message in messages:
            own, node = self.arrays_of(message), message.metadata.dst_node_id
            self._expected[node] = own.count_bytes()
            if own is not of_all and dict(own) != dict(of_all) and self.recording.wants(server_round, node):
                self.recording.write_sent_to(server_round, node, _read(own))

    def sender(self, reply: Message) -> int | None:
        """Return whom a reply is from, or ``None`` if nobody waits for it: each node that was asked answers once."""
        node = reply.metadata.src_node_id
        return node if node in self._expected else None

    def receiving(self, reply: Message) -> Received | None:
        """Return what a reply holds, as far as it is sound, or ``None``.

        Raises:
            ValueError: Saying why it is no update.
        """
        arrays, most = self.arrays_of(reply), MAXIMUM_GROWTH * self._expected.pop(reply.metadata.src_node_id)
        if (size := arrays.count_bytes()) > most + 10**6 or len(arrays) > MAXIMUM_ARRAYS:
            raise ValueError(f"{len(arrays)} arrays of {size} bytes, at most {most} are recorded")
        found = _read(arrays)
        if wrong := [name for name, array in found.items() if not torch.isfinite(array).all()]:
            raise ValueError(f"{_one_line(wrong[0])} holds NaN or infinity")
        metrics = _numbers(reply.content)
        key = getattr(self.strategy, "weighted_by_key", EXAMPLES)
        return found, metrics | ({EXAMPLES: metrics[key]} if key in metrics else {})

    def _receiving(self, server_round: int, reply: Message) -> None:
        node = self.sender(reply)
        if node is None or reply.has_error() or not self.recording.wants(server_round, node):
            return
        if (found := self.receiving(reply)) is not None:
            self.recording.write_received(server_round, node, *found)

    def arrays_of(self, message: Message) -> ArrayRecord:
        """Return the record that the strategy takes for the model.

        Raises:
            ValueError: If there is none.
        """
        name = getattr(self.strategy, "arrayrecord_key", ARRAYS)
        record = message.content.get(name) if message.has_content() else None
        if not isinstance(record, ArrayRecord) or not record:
            raise ValueError(f"no arrays in a record {name!r}")
        return record

    def _safely(self, what: str, record: Callable[..., None], *arguments: Any) -> None:
        """Record; whatever goes wrong, the run goes on."""
        try:
            record(*arguments)
        except Exception as error:  # a spectator must not end what it watches
            logger.warning("%s isn't recorded: %s", what, _one_line(str(error)) or type(error).__name__)


def ground_truth(own_images: Callable[[Context], tuple[Tensor, Tensor]], folder: str | Path | None = None) -> Mod:
    """Return a mod that writes what a node trained on to its own disk, for its owner alone; nothing of it is sent.

    ``snnfl audit … --truth FOLDER`` then says how much of it an update has told. Without a folder the mod does nothing:
    the node's owner consents by naming one, ``truth-directory`` in the configuration of the node.

    Args:
        own_images: Returns a node's training images as pixels in [0, 1], ``[N, C, H, W]``, and their labels ``[N]``;
            of more than 1,024 images the labels alone are kept. It is called in each round.
        folder: In the place of ``truth-directory``, for a simulation, whose nodes have no owners.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        place = context.node_config.get(TRUTH_DIRECTORY) or folder
        if place is not None and message.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
            try:
                truth, server_round = _truth_of(*own_images(context)), _round_of(message)
                write_truth(Path(str(place)).expanduser(), server_round, message.metadata.dst_node_id, truth)
            except Exception as error:  # of somebody else's code, or a full disk: the client goes on
                logger.warning("the node's own truth isn't kept: %s", _one_line(f"{type(error).__name__}: {error}"))
        return reply

    return mod


def _truth_of(images: Tensor, labels: Tensor) -> GroundTruth:
    images, labels = torch.as_tensor(images).detach().cpu().float(), torch.as_tensor(labels).detach().cpu().long()
    if len(images) != len(labels) or labels.dim() != 1 or not len(labels):
        raise ValueError(f"images {list(images.shape)} and labels {list(labels.shape)}: expected as many of either")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images of {low:g} to {high:g}: expected pixels in [0, 1], as before their normalisation")
    return GroundTruth(images=images[: len(images) if len(images) <= MAXIMUM_IMAGES else 0], labels=labels)


def _round_of(message: Message) -> int:
    for record in message.content.config_records.values():
        found = record.get(SERVER_ROUND)
        if isinstance(found, int):
            return found
    raise ValueError(f"no config record of the message says the round ({SERVER_ROUND})")


def _read(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Read arrays, whoever wrote them.

    Raises:
        ValueError: Naming the first that is none.
    """
    found = {}
    for name, array in arrays.items():
        try:
            found[name] = torch.from_numpy(npy.parse(array.data))
        except Exception as error:  # whatever a crafted header makes Python's parser raise
            raise ValueError(f"{name[:MAXIMUM_TEXT]}: {error or type(error).__name__}") from None
    return found


def _numbers(content: RecordDict) -> dict[str, float]:
    """Return the metrics of a reply that are one number each."""
    found = {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, int | float) and len(name) <= MAXIMUM_TEXT and abs(value) < 1e300
    }
    return dict(list(found.items())[:MAXIMUM_ENTRIES])


def config_of(content: RecordDict) -> dict[str, Any]:
    """Return what a message tells its client beside arrays, as far as it is short."""
    found = {
        name: value
        for record in content.config_records.values()
        for name, value in record.items()
        if isinstance(value, bool | int | float | str) and len(str(value)) <= MAXIMUM_TEXT
    }
    return dict(list(found.items())[:MAXIMUM_ENTRIES])


def _one_line(text: str) -> str:
    line = " ".join(text[:300].split())
    return "".join(character if character.isprintable() else "?" for character in line)
