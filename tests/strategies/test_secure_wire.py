"""What a server of secure aggregation stores: every field of every message, of two runs side by side."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from snnfl.masking import keys, participant
from snnfl.updates import summed
from snnfl.workspace import workspace
from strategies.server_app import server_app

CLIENTS, VICTIM = 5, 0
SMALL = [
    f"data.clients={CLIENTS}", "model.name=mlp", "run.rounds=1", "run.keep_checkpoints=0", "training.epochs=1",
    "conversion.steps=4", "conversion.calibration_images=16", "evaluation.images=60", "evaluation.clients=false",
    "strategy.secure_aggregation=true",
]  # fmt: skip
OTHER_DATA = ["poisoning.attack=label_flip", "poisoning.source=1", "poisoning.target=7", "poisoning.attackers=1"]
"""One client trains on other labels, as many as before."""


class Recorded(ClientApp):
    """The real client; what it answers is kept by round, partition and question."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[tuple[int, str], list[RecordDict]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        key = int(context.node_config["partition-id"]), message.metadata.message_type
        self.said.setdefault(key, []).append(RecordDict(dict(reply.content)))
        return reply

    def fields(self) -> Iterator[tuple[tuple[int, str, str, str], object]]:
        """Yield all that was answered, down to the fields."""
        for (partition, kind), answers in self.said.items():
            for number, content in enumerate(answers):
                for record, values in content.items():
                    for name, value in values.items():
                        told = value.data if isinstance(values, ArrayRecord) else value
                        yield (partition, f"{kind} {number}", record, name), told

    def masked(self, partition: int, number: int = 0) -> np.ndarray:
        arrays = self.said[partition, "train"][number]["arrays"]
        assert isinstance(arrays, ArrayRecord)
        return arrays["masked"].numpy()


def play(folder: Path, *more: str) -> Recorded:
    app = Recorded()
    config = compose(None, [*SMALL, *more, f"run.directory={folder}"])
    run_in_process(server_app(), app, run_config=flatten(config), clients=CLIENTS)
    return app


def fixed_draws() -> Callable[[int], bytes]:
    """Return a source that gives the same bytes in the same order."""
    count = itertools.count()

    def draw(size: int) -> bytes:
        return hashlib.shake_256(str(next(count)).encode()).digest(size)

    return draw


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch):
    """A figure at the end takes as long as the run."""
    monkeypatch.setattr("strategies.server_app.plot_accuracy", lambda *arguments: None)


@pytest.fixture
def foreseen(monkeypatch) -> Callable[[], None]:
    """Make everything that is drawn the same in runs that follow."""

    def fix() -> None:
        draw = fixed_draws()
        monkeypatch.setattr("clients.masking_mod.os.urandom", draw)
        monkeypatch.setattr("shamirs.shamirs.secrets.randbelow", lambda limit: int.from_bytes(draw(16)) % limit)
        monkeypatch.setattr("strategies.secure_round.secrets.token_bytes", draw)
        # Masks are made under the configuration, and the runs that are compared have two.
        monkeypatch.setattr("clients.masking_mod.task_of", lambda *told: bytes(32))

    return fix


def differences(first: Recorded, second: Recorded) -> set[tuple[int, str, str, str]]:
    """Name all fields that two runs differ in."""
    ours, theirs = dict(first.fields()), dict(second.fields())
    assert ours.keys() == theirs.keys()
    return {name for name, value in ours.items() if value != theirs[name]}


SLOW = [
    pytest.param([option], marks=pytest.mark.slow) for option in ("strategy.spiking=false", "strategy.name=fedadam")
]


@pytest.mark.parametrize("variant", [[], *SLOW])
def test_of_one_clients_data_nothing_but_its_masked_vector_depends(variant, foreseen, tmp_path):
    """Keys, shares and masks being the same, and one client's data others: no message else differs in a bit.

    The seconds that a client has trained for differ between any two runs, and are masked, too: so all clients' vectors
    differ in two elements, and the victim's in (almost) all of what it has trained.
    """
    foreseen()
    first = play(tmp_path / "first", *variant)
    foreseen()
    second = play(tmp_path / "second", *variant, *OTHER_DATA)
    differing = differences(first, second)
    assert differing <= {(partition, "train 0", "arrays", "masked") for partition in range(CLIENTS)}
    changed = [np.count_nonzero(first.masked(p) != second.masked(p)) for p in range(CLIENTS)]
    assert sum(count > 10 for count in changed) == 1
    assert max(changed) > 0.2 * first.masked(0).size


def equal_elements(first: np.ndarray, second: np.ndarray) -> int:
    """Count where two masked vectors of one update agree: by chance ``length / 2^32`` times."""
    return int(np.count_nonzero(first == second))


def test_the_same_update_is_masked_anew_in_every_session(tmp_path):
    """The statistical test on what the server stores: bits of masked vectors, and of their differences, are even."""
    runs = [play(tmp_path / str(number)) for number in range(2)]
    for partition in range(CLIENTS):
        first, second = (run.masked(partition) for run in runs)
        assert equal_elements(first, second) == 0
        for vector in (first, second, first - second, first ^ runs[0].masked((partition + 1) % CLIENTS)):
            bits = np.unpackbits(vector.view(np.uint8))
            assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)


def test_thresholds_that_are_left_out_of_the_mask_show(tmp_path, monkeypatch):
    """The fault that a client adds its masks to the ANN alone: the inspection finds the network's elements."""
    work = workspace(compose(None, SMALL))
    layout = summed(work.config, work.format, examples=100, follows=False)
    thresholds = sum(1 for name in layout.network_shapes if name.endswith("threshold"))
    assert thresholds
    assert list(layout.network_shapes)[-thresholds:] == list(work.format.threshold_names)

    def add_mask(total: np.ndarray, key: bytes, *, subtract: bool = False) -> None:
        keys.add_mask(total[:-thresholds], key, subtract=subtract)

    runs = []
    with monkeypatch.context() as patched:
        patched.setattr(participant, "keys", _WithFault(add_mask))
        runs = [play(tmp_path / str(number)) for number in range(2)]
    assert equal_elements(runs[0].masked(VICTIM), runs[1].masked(VICTIM)) == thresholds


def test_masks_that_are_used_twice_show(tmp_path, foreseen):
    """The fault that secrets aren't drawn anew: two sessions' vectors of one update are one."""
    runs = []
    for number in range(2):
        foreseen()
        runs.append(play(tmp_path / str(number)))
    first, second = (run.masked(VICTIM) for run in runs)
    assert equal_elements(first, second) > 0.99 * first.size


class _WithFault:
    """The module of keys, but for one function."""

    def __init__(self, add_mask: Callable[..., None]) -> None:
        self.add_mask = add_mask

    def __getattr__(self, name: str) -> object:
        return getattr(keys, name)
