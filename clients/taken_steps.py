"""Which step of a round's masks a node is at, on its own disk, so that none is taken twice.

What a client knows between two steps is in its ``context.state``, and of that a SuperNode gives a copy to the process
of each message (Flower 1.41, ``flwr/supernode/servicer/runtime``): two messages that a server sends at once both find a
client that has not masked yet, and one that takes long puts an old state back. One mask on two vectors tells their
difference. So each step renames one empty file, which the system lets one process do.

It is for nodes that know each other's keys. Where a server hands the keys over, it can read along without such means.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from flwr.app import Context

from snnfl.config import ConfigError
from snnfl.files import make_private
from snnfl.masking import ProtocolError, Secrets
from snnfl.masking.shares import digest
from snnfl.protocol import IDENTITIES, STATE_DIRECTORY

FOLDER = "secure-aggregation"


def begin(context: Context, secrets: Secrets) -> None:
    """Note the first step of a session, whose secrets have just been drawn; an earlier session can't go on.

    Raises:
        ConfigError: If the node knows the others' keys, but names no folder of its own, or one that can't be written.
    """
    if (folder := _folder(context, secrets)) is None:
        return
    try:
        make_private(folder)
        for other in folder.iterdir():
            other.unlink(missing_ok=True)
        _file(folder, secrets).touch()
    except OSError as error:
        raise _unwritable(context, error) from None


def advance(context: Context, before: Secrets, after: Secrets | None) -> None:
    """Note the next step of a session; ``None`` for its end, which leaves nothing.

    Raises:
        ProtocolError: If it isn't at the step before, for it has been taken, or another session has begun.
        ConfigError: As :func:`begin`.
    """
    if (folder := _folder(context, before)) is None:
        return
    try:
        if after is None:
            _file(folder, before).unlink()
            with suppress(OSError):  # another session has begun
                folder.rmdir()
        else:
            _file(folder, before).rename(_file(folder, after))
    except FileNotFoundError:
        raise ProtocolError(
            f"the server asks twice for the step after {before.step!r}, or for one of an earlier session; refused"
        ) from None
    except OSError as error:
        raise _unwritable(context, error) from None


def _unwritable(context: Context, error: OSError) -> ConfigError:
    reason = error.strerror or type(error).__name__
    return ConfigError(
        f"node config {STATE_DIRECTORY}={context.node_config[STATE_DIRECTORY]}: cannot be written ({reason}); this "
        "node notes there which masks it has used; name another folder, or free it"
    )


def _folder(context: Context, secrets: Secrets) -> Path | None:
    """Return the folder of this client in this run."""
    known, directory = context.node_config.get(IDENTITIES), context.node_config.get(STATE_DIRECTORY)
    if known is None:
        return None
    if directory is None:
        raise ConfigError(
            f"node config {IDENTITIES}={known}: this node names no folder in which it could note which masks it has "
            f"used; start it with --node-config \"{STATE_DIRECTORY}='/var/lib/snnfl'\", too"
        )
    return Path(str(directory)) / FOLDER / f"{context.run_id}-{secrets.own}"


def _file(folder: Path, secrets: Secrets) -> Path:
    """Return the file of a step: by what the server knows the seed of the session's own mask by, too."""
    return folder / f"{digest(secrets.session, b'self seed', secrets.self_seed, secrets.own).hex()}.{secrets.step}"
