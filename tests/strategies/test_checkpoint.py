"""Checkpoints: what comes back, how many stay, and what happens to a damaged one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg

from snnfl.checksummed import round_file, round_files, write_checksummed
from snnfl.config import ConfigError, ConversionConfig
from snnfl.updates import Converted
from strategies import checkpoint
from strategies.checkpoint import Checkpoint, Checkpoints, check_state, discard_newer, intact_checkpoints
from strategies.guarded import Guarded
from strategies.spiking import Spiking
from strategies.state import StrategyState
from strategies.update import UpdateSpec

ARRAYS = ArrayRecord({"w": torch.tensor([0.1, -0.0, float("inf")])})


def plain() -> Guarded:
    return Guarded(FedAvg(fraction_evaluate=0.0), UpdateSpec(arrays={}, metrics=frozenset()), seed=0)


def checkpoints(folder: Path, *, keep: int = 9, rounds: int = 99) -> Checkpoints:
    metrics = folder.with_name("metrics.jsonl")
    metrics.touch()
    return Checkpoints(folder, metrics, keep=keep, rounds=rounds)


def write(folder: Path, *rounds: int, keep: int = 9) -> None:
    writer = checkpoints(folder, keep=keep)
    for n in rounds:
        writer.write(plain(), server_round=n, token=f"{n:032x}", arrays=ARRAYS)


def newest(folder: Path) -> int | None:
    found = next(intact_checkpoints(folder), None)
    return None if found is None else found.server_round


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_last_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, left: list[int]) -> None:
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 0.0)
    write(tmp_path / "checkpoints", 1, 2, 3, 4, keep=keep)
    assert list(round_files(tmp_path / "checkpoints")) == left


def test_after_a_power_cut_a_run_goes_on_from_what_was_surely_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 0.3 s: the disk is waited for after rounds 1, 5 and 9, and what is younger may be lost or damaged."""
    now, synced, fsync = [0.0], list[str](), os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.strip("."))
        fsync(handle)

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "checkpoints"
    writer, last = checkpoints(folder, keep=2, rounds=12), 0
    for n in range(1, 13):
        now[0] = 0.3 * n
        synced.clear()
        writer.write(plain(), server_round=n, token=f"{n:032x}", arrays=ARRAYS)
        if n in (1, 5, 9, 12):  # the rows of a checkpoint are on the disk before it is
            assert synced == ["metrics.jsonl", f"round-{n:06d}.safetensors.tmp", "checkpoints"]
            last = n
        else:
            assert not synced
        assert list(round_files(folder)) == sorted({last, *range(max(1, n - 1), n + 1)})
        assert writer.oldest == min(round_files(folder))
        cut = tmp_path / f"cut-{n}"
        shutil.copytree(folder, cut)
        for found, path in round_files(cut).items():
            if found > last:
                path.write_bytes(path.read_bytes()[: 7 * n])
        assert newest(cut) == last


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, 3, 12)
    found = next(intact_checkpoints(tmp_path), None)
    assert found is not None
    assert (found.server_round, found.token, found.network) == (12, f"{12:032x}", None)
    assert found.arrays["w"].numpy().tobytes() == ARRAYS["w"].numpy().tobytes()


def test_a_spiking_strategy_goes_on_with_its_network_and_its_moments(
    federation: Any, update_reply: Callable[..., Any], tmp_path: Path
) -> None:
    metrics = ("num-examples", "loss", "accuracy", "seconds-train")

    def build() -> Spiking:
        base = FedAdam(fraction_evaluate=0.0)
        return Spiking(
            base, Converted(federation.graph, federation.state, ConversionConfig()), metrics=frozenset(metrics)
        )

    strategy = build()
    base: Any = strategy.base
    base.current_arrays = {name: array.numpy() for name, array in federation.without_biases().items()}
    strategy._sent = dict(federation.without_biases().to_torch_state_dict())
    arrays, _ = strategy.aggregate_train(1, [update_reply(federation.trained(n)[1], n) for n in (11, 12)])
    assert arrays is not None
    checkpoints(tmp_path, keep=1).write(strategy, server_round=1, token="0" * 32, arrays=arrays)
    resumed, found = build(), next(intact_checkpoints(tmp_path), None)
    assert found is not None
    found.restore(resumed)
    assert strategy.network is not None
    assert resumed.network is not None
    assert resumed.network.graph is federation.graph
    assert resumed.network.parameters.keys() == strategy.network.parameters.keys()
    for name, array in strategy.network.parameters.items():
        assert torch.equal(resumed.network.parameters[name], array)
        assert resumed.network.parameters[name].stride() == array.stride()
    again: Any = resumed.base
    for moments in ("m_t", "v_t", "current_arrays"):
        expected, found = getattr(base, moments), getattr(again, moments)
        assert list(found) == list(expected)
        assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_schema(path: Path) -> None:
    write_checksummed(path, {}, {"schema": 99})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "schema": other_schema,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_skipped_with_one_warning(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, 2, 3)
    caplog.clear()
    damage(round_file(tmp_path, 3))
    assert newest(tmp_path) == 2
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    line = record.getMessage()
    assert line.startswith(f"{round_file(tmp_path, 3)}: ")
    assert line.endswith("; this checkpoint is skipped")
    assert len(line.splitlines()) == 1


def test_when_all_are_damaged_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest(tmp_path / "none") is None
    write(tmp_path, 1, 2)
    caplog.clear()
    for n in (1, 2):
        flip(round_file(tmp_path, n))
    assert newest(tmp_path) is None
    assert len(caplog.records) == 2


def test_a_write_that_is_killed_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    round_file(tmp_path, 2).with_name(".round-000002.safetensors.tmp").write_bytes(b"half")
    assert newest(tmp_path) == 1
    write(tmp_path, 2)
    assert newest(tmp_path) == 2


def test_rounds_that_will_be_repeated_are_forgotten(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    discard_newer(tmp_path, 2)
    assert list(round_files(tmp_path)) == [1, 2]


def test_what_cannot_be_written_is_found_before_the_first_round() -> None:
    strategy = plain()
    check_state(strategy)
    strategy.base.extra = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"strategy\.extra is a set, .*run.keep_checkpoints=0"):
        check_state(strategy)


def test_a_checkpoint_of_another_strategy_is_refused() -> None:
    state = Checkpoint(
        server_round=1, token="", arrays=ARRAYS, network=None, base=StrategyState(kind="FedAdam", attributes={})
    )
    with pytest.raises(ConfigError, match="FedAdam"):
        state.restore(plain())
