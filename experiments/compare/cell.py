"""``experiments.compare.cell CONFIG.yaml EXTRAS.json PID``: a cell; its process ends with that of PID.

The study's plug-ins come by the standard input.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from clients.client_app import app as client_app
from experiments.compare.extras import Extras
from experiments.compare.measure import measure
from experiments.ending import explained
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from snnfl.plugins import adopt, unpack
from strategies.lock import locked
from strategies.resume import RunBrokenOffError
from strategies.run_directory import holds_results, run_path, simulated_node
from strategies.server_app import server_app

LOCK = "cell.lock"


def run_cell(path: Path, extras: Extras) -> None:
    """Run, or resume, a cell, and measure what is asked of it then.

    Args:
        path: YAML file of its configuration.
        extras: What to measure when it is finished.

    Raises:
        FolderInUseError: If another process runs it at this moment.
    """
    config = compose(path)
    folder = run_path(config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, LOCK):
        if not holds_results(folder):  # there is nothing yet to go on with
            config = replace(config, run=replace(config.run, resume=False))
        run_in_process(
            server_app(),
            client_app,
            run_config=flatten(config),
            clients=config.data.clients,
            node_config=simulated_node(config),
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
        adopt(unpack(sys.stdin.buffer.read()))
        run_cell(Path(sys.argv[1]), Extras.from_json(Path(sys.argv[2]).read_text(encoding="utf-8")))
    except RunBrokenOffError as error:
        sys.exit(error.reason)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        sys.exit(" ".join(told[0]))


if __name__ == "__main__":
    main()
