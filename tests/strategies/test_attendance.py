"""Who was asked and what came of it: lost states are counted, and a run that lacks something says who and why."""

from __future__ import annotations

from typing import Any

import pytest

from snnfl.config import Config, compose
from strategies.attendance import Fault, KnownStates, attendance_columns, shortcomings


def config_of(*overrides: str) -> Config:
    return compose(None, ["data.clients=3", *overrides])


def row(
    server_round: int,
    *faults: Fault,
    asked: tuple[int, ...] = (0, 1, 2),
    evaluate: tuple[int, ...] = (),
    held: tuple[int, ...] = (0, 1, 2),
    aggregated: bool = True,
    config: Config | None = None,
) -> dict[str, Any]:
    dropped = {fault.partition for fault in faults if fault.message == "train"}
    columns = attendance_columns(config or config_of(), {"train": asked, "evaluate": evaluate}, faults, held)
    return {"round": server_round, "replies": len(set(asked) - dropped), "aggregated": aggregated, **columns}


def failed(partition: int | None, message: str = "train", reason: str = "no luck") -> Fault:
    return Fault(partition=partition, message=message, verdict="failed", reason=reason)


def test_a_run_with_single_faults_is_as_configured() -> None:
    rows = [row(1, failed(0)), row(2, failed(1), failed(None)), row(3, failed(2))]
    assert shortcomings(config_of(), rows) == []


def test_a_client_that_never_gave_a_valid_reply_is_named() -> None:
    refused = Fault(partition=1, message="train", verdict="refused", reason="fc1.weight: holds NaN")
    rows = [row(1, failed(1)), row(2, asked=(0, 2)), row(3, refused, failed(0))]
    said = "partition 1 gave no valid reply to 2 of 2 train messages; the last one refused: fc1.weight: holds NaN"
    assert shortcomings(config_of(), rows) == [said]
    assert shortcomings(config_of(), rows[:1])[0].startswith("partition 1 gave no valid reply to 1 of 1 train messages")
    assert shortcomings(config_of(), [*rows, row(4)]) == []


def test_a_client_that_never_evaluated_is_named() -> None:
    rows = [row(n, failed(2, "evaluate"), evaluate=(0, 2)) for n in (1, 2)]
    said = "partition 2 gave no valid reply to 2 of 2 evaluate messages; the last one failed: no luck"
    assert shortcomings(config_of(), rows) == [said]


@pytest.mark.parametrize(("name", "lacks"), [("fedavg", True), ("solo", False)])
def test_a_last_round_that_kept_the_old_weights_is_named(name: str, lacks: bool) -> None:
    """But for SOLO, whose server never has weights."""
    rows = [row(1), row(2, aggregated=False)]
    said = ["round 2, the last, kept the old weights; 3 of 3 replies were valid"] if lacks else []
    assert shortcomings(config_of(f"strategy.name={name}"), rows) == said
    rows = [row(1), row(2, failed(0, reason="disk full"), failed(1), failed(2), aggregated=False)]
    (line,) = shortcomings(config_of(f"strategy.name={name}"), rows)
    assert line == "round 2, the last, kept the old weights; 0 of 3 replies were valid: partition 0 failed: disk full"
    assert shortcomings(config_of(), [row(1, aggregated=False), row(2)]) == []


def test_a_partition_that_nobody_held_is_named() -> None:
    said = ["partition 1 took no part: no node that holds it could be asked; the log says why"]
    rows = [row(n, asked=(0, 2), held=(0, 2)) for n in (1, 2)]
    assert shortcomings(config_of(), rows) == said
    assert shortcomings(config_of("strategy.fraction_train=0.5"), rows) == said
    assert shortcomings(config_of(), [*rows, row(3)]) == []


def test_a_partition_that_was_never_asked_is_named_where_everybody_was_to_be() -> None:
    """Its node was gone before the first round."""
    rows = [row(n, asked=(0, 2)) for n in (1, 2)]
    assert shortcomings(config_of(), rows) != []
    assert shortcomings(config_of("strategy.fraction_train=0.5"), rows) == []
    assert shortcomings(config_of("strategy.participation=0.5"), rows) == []


def test_a_detector_that_never_judged_is_named() -> None:
    config = config_of("detection.detectors=[norm,krum]")
    judged = [{**row(n), "detection": {"norm": {"flagged": []}, "krum": {"failed": f"boom {n}"}}} for n in (1, 2)]
    rows = [judged[0], {**row(2), "detection": None}, judged[1]]
    assert shortcomings(config, rows) == ["detector krum failed in 2 of 2 rounds; the last time: boom 2"]
    assert shortcomings(config, [*rows, {**row(4), "detection": {"krum": {"flagged": [1]}}}]) == []


def test_a_tracker_that_never_tracked_is_named() -> None:
    config = config_of("run.tracking=mine")
    failed = [{**row(n), "tracking": {"name": "mine", "failed": "no route"}} for n in (2, 3)]
    fine = {**row(1), "tracking": {"name": "earlier", "failed": None}}
    assert shortcomings(config, [fine, *failed]) == ["tracker mine failed in 2 of 2 rounds; the last time: no route"]
    assert shortcomings(config, [*failed, {**row(4), "tracking": {"name": "mine", "failed": None}}]) == []
    assert shortcomings(config_of(), [fine, *failed]) == []


def test_rows_of_earlier_versions_say_less() -> None:
    rows = [{"round": 1, "replies": 2, "aggregated": True}, {"round": 2, "replies": 0, "aggregated": False}]
    assert shortcomings(config_of(), rows[:1]) == []
    (line,) = shortcomings(config_of(), rows)
    assert line.startswith("round 2, the last, kept the old weights")


def test_lost_states_are_counted_and_each_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    states = KnownStates(config_of(), [row(1), row(2, failed(1)), row(3, asked=(0,))])
    nodes = {0: 10, 1: 11, 2: 12}

    def told(server_round: int, **since: int) -> int | None:
        metrics = {int(partition[1:]): {"state-round": float(n)} for partition, n in since.items()}
        return states.count_lost(server_round, metrics, nodes)

    assert told(4, p0=3, p1=1, p2=2) == 0
    assert told(5, p0=4, p1=0) == 1
    assert told(6, p0=3, p1=5, p2=2) == 2
    assert told(7, p0=6, p2=7) == 0, "a reply may have been late: its client has trained all the same"
    assert [record.getMessage().split("; ")[0:2] for record in caplog.records] == [
        [f"round {n}: partition {p} (node {nodes[p]}) has lost the private state of round {expected}",
         f"it trained from {found}, so the run differs from an undisturbed one"]
        for n, p, expected, found in (
            (5, 1, 4, "the common initial one"), (6, 0, 5, "that of round 3"), (6, 2, 4, "that of round 2")
        )
    ]  # fmt: skip


def test_where_clients_keep_nothing_nothing_is_lost() -> None:
    assert KnownStates(config_of("strategy.spiking=false")).count_lost(1, {0: {}}, {0: 1}) is None
