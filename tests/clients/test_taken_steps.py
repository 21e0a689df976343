"""That no two processes of a node take one step of a round's masks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from flwr.app import Context

from clients.taken_steps import advance, begin
from snnfl.config import Config, ConfigError
from snnfl.masking import ProtocolError, Secrets, advertise

SESSION = bytes(32)


@pytest.fixture
def context(configure: Callable[..., Config], context_of: Callable[..., Context], tmp_path: Path) -> Context:
    made = context_of(configure())
    made.node_config |= {"identities": str(tmp_path / "known"), "state-directory": str(tmp_path / "state")}
    return made


def takes(context: Context, before: Secrets, after: Secrets | None) -> bool:
    try:
        advance(context, before, after)
    except ProtocolError:
        return False
    return True


def compete(context: Context, before: Secrets, together: Barrier, won: multiprocessing.SimpleQueue[bool]) -> None:
    together.wait()
    won.put(takes(context, before, replace(before, step="shared")))


def test_of_processes_that_take_a_step_at_once_one_does(context: Context) -> None:
    """Each holds the same secrets, as a SuperNode hands them out; a session after it has steps of its own."""
    forked = multiprocessing.get_context("fork")
    for _ in range(5):
        secrets, _ = advertise(SESSION, 0, os.urandom)
        begin(context, secrets)
        together, won = forked.Barrier(4), forked.SimpleQueue()
        rivals = [forked.Process(target=compete, args=(context, secrets, together, won)) for _ in range(4)]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
        assert sum(won.get() for _ in rivals) == 1


def test_an_old_state_that_comes_back_goes_no_step_further(context: Context, tmp_path: Path) -> None:
    """Neither in its own session, nor after another of the same name has begun; and nothing secret is written."""
    advertised, _ = advertise(SESSION, 0, os.urandom)
    shared, masked = replace(advertised, step="shared"), replace(advertised, step="masked")
    begin(context, advertised)
    assert takes(context, advertised, shared)
    assert takes(context, shared, masked)
    assert not takes(context, shared, masked)
    again, _ = advertise(SESSION, 0, os.urandom)
    begin(context, again)
    assert not takes(context, masked, None)
    assert not takes(context, advertised, shared)
    assert takes(context, again, None)
    assert not takes(context, again, None)
    begin(context, masked)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not file.stat().st_size
    assert masked.self_seed.hex() not in str(file)


def test_a_node_that_knows_the_others_has_a_folder_of_its_own(context: Context) -> None:
    secrets, _ = advertise(SESSION, 0, os.urandom)
    del context.node_config["state-directory"]
    with pytest.raises(ConfigError, match=r"identities=.*names no folder .*state-directory='/var/lib/snnfl'"):
        begin(context, secrets)
    del context.node_config["identities"]  # a server that hands the keys over reads along anyway
    begin(context, secrets)
    assert takes(context, secrets, None)


def test_a_session_that_has_ended_leaves_nothing(context: Context, tmp_path: Path) -> None:
    secrets, _ = advertise(SESSION, 0, os.urandom)
    begin(context, secrets)
    assert takes(context, secrets, None)
    assert list((tmp_path / "state" / "secure-aggregation").iterdir()) == []
    begin(context, secrets)
    assert takes(context, secrets, replace(secrets, step="shared"))


def test_a_folder_that_cannot_be_written_is_named_in_one_line(context: Context, tmp_path: Path) -> None:
    secrets, _ = advertise(SESSION, 0, os.urandom)
    (tmp_path / "state").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"state-directory=.*/state: cannot be written \(Not a directory\); this node"
    ):
        begin(context, secrets)
    (tmp_path / "state").unlink()
    begin(context, secrets)
    file = next(path for path in tmp_path.rglob("*") if path.is_file())
    file.with_suffix(".shared").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\)"):
        advance(context, secrets, replace(secrets, step="shared"))
