"""``experiments.membership.cell PID``: one of several equal processes that train and attack what a study lacks.

Each takes the next cell that nobody holds, so that all end at about the same time and none is started for one cell
alone. A cell is a network, or the attacks on a setting whose networks are all asked. The study and its plug-ins
come by the standard input (:func:`packed`).
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from experiments.ending import explained
from experiments.membership.networks import LOCK, answers_file, folder_of, processor_seconds, train_and_ask, trials_of
from experiments.membership.study import MembershipStudy, Network, Setting
from snnfl.auditing.membership import run_attacks
from snnfl.auditing.membership_scores import results
from snnfl.files import write_bytes
from snnfl.plugins import adopt, pack, unpack
from strategies.lock import FolderInUseError, locked

WAIT_SECONDS = 0.2
"""How long a process waits that finds nothing to do while others work."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A piece of work.

    Attributes:
        setting: Which it belongs to.
        network: The network; ``None`` for the attacks on all of them.
    """

    setting: Setting
    network: Network | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.setting.name}, {'attacks' if self.network is None else self.network.name}"

    @cached_property
    def file(self) -> Path:
        """What is there when it is finished."""
        return self.setting.results if self.network is None else answers_file(self.setting, self.network)

    @property
    def folder(self) -> Path:
        """Where one process at a time writes."""
        return self.setting.path if self.network is None else folder_of(self.setting, self.network)

    @property
    def finished(self) -> bool:
        """Whether its file is there."""
        return self.file.exists()

    @property
    def ready(self) -> bool:
        """Whether all that it needs is there."""
        if self.network is not None:
            return True
        return all(answers_file(self.setting, network).exists() for network in self.setting.cells)

    def run(self) -> None:
        """Do it."""
        if self.network is not None:
            train_and_ask(self.setting, self.network)
            return
        start, begun, trials = time.perf_counter(), time.process_time(), trials_of(self.setting)
        found = results(trials, run_attacks(trials, self.setting.attacks, seed=self.setting.config.run.seed))
        content = {
            **found,
            "labels": dict(self.setting.labels),
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - begun + processor_seconds(self.setting),
        }
        write_bytes(self.file, json.dumps(content).encode())


def cells_of(study: MembershipStudy) -> list[Cell]:
    """Return all cells: the first network of each setting, then the second, and attacks as early as they can be."""
    cells = [Cell(setting=setting, network=network) for setting in study.settings for network in setting.cells]
    cells.sort(key=lambda cell: (cell.network.number, cell.network.kind) if cell.network else (0, ""))
    return [*(Cell(setting=setting, network=None) for setting in study.settings), *cells]


def work_through(cells: Sequence[Cell]) -> dict[str, BaseException]:
    """Do what is left, with as many other processes as do the same; return what failed, by its name."""
    failed: dict[str, BaseException] = {}
    while left := [cell for cell in cells if not cell.finished and cell.name not in failed]:
        held, did = False, False
        for cell in left:
            if cell.finished or not cell.ready:
                continue
            try:
                cell.folder.mkdir(parents=True, exist_ok=True)
                with locked(cell.folder, LOCK):
                    if not cell.finished:
                        cell.run()
                did = True
                break
            except FolderInUseError:
                held = True
            except Exception as error:
                failed[cell.name] = error
        if not did:
            if not held:
                break  # what is left waits for what failed
            time.sleep(WAIT_SECONDS)
    return failed


def packed(study: MembershipStudy) -> bytes:
    """Write a study for :func:`main`, with the plug-ins that must be run before it can be read."""
    plugins = {plugin.name: plugin for setting in study.settings for plugin in setting.plugins}
    return pickle.dumps((pack(plugins.values()), pickle.dumps(study)))


def main() -> None:
    """Work through the study that the standard input holds; a mistake is one line."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    plugins, content = pickle.loads(sys.stdin.buffer.read())  # of the process that started this one
    adopt(unpack(plugins))
    study: MembershipStudy = pickle.loads(content)
    torch.set_num_threads(study.settings[0].config.run.threads)
    failed = work_through(cells_of(study))
    for name, error in failed.items():
        told = explained(error)
        if told is None and not isinstance(error, RuntimeError | OSError):
            raise error
        sys.stderr.write(f"{name}: {' '.join(told[0]) if told else error}\n")
    sys.exit(1 if failed else 0)


def _end_with(parent: int) -> None:
    """End this process when its study has ended, however that was: nobody would wait for it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
