"""``python -m experiments.compare.cell CONFIG.yaml EXTRAS.json PID``: a cell; its process ends with that of PID."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
import time
from pathlib import Path

from clients.client_app import app as client_app
from experiments.compare.extras import Extras
from experiments.compare.measure import measure
from experiments.engines.in_process import run_in_process
from snnfl.audit.recording import RecordingError
from snnfl.config import ConfigError, compose, flatten
from snnfl.threat import ThreatModelError
from strategies.run_directory import node_folders, run_path
from strategies.server_app import server_app

LOCK = "cell.lock"


def run_cell(path: Path, extras: Extras) -> None:
    """Run, or resume, a cell, and measure what is asked of it then.

    Args:
        path: YAML file of its configuration.
        extras: What to measure when it is finished.

    Raises:
        ConfigError: If another process runs it at this moment.
    """
    config = compose(path)
    folder = run_path(config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another process runs this cell") from None
        run_in_process(
            server_app(),
            client_app,
            run_config=flatten(config),
            clients=config.data.clients,
            node_config=node_folders(folder),
        )
        measure(config, extras, folder)


def _end_with(parent: int) -> None:
    """End this process when its study has ended, however that was: nobody would wait for it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Run the cell that the command line names; a mistake is one line."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threading.Thread(target=_end_with, args=(int(sys.argv[3]),), daemon=True).start()
    try:
        run_cell(Path(sys.argv[1]), Extras.from_json(Path(sys.argv[2]).read_text(encoding="utf-8")))
    except (ConfigError, RecordingError, ThreatModelError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
