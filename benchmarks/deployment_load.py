"""How many SuperNodes one SuperLink holds on this machine: real processes, TLS, node authentication, a tiny model.

As many nodes as fit into memory idle, then play rounds of plain FedAvg of an MLP on digits. Memory
is the proportional set size: what processes share is divided among them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

# tests/fleet.py, whose neighbour tests/experiments must not be found before the real one.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from fleet import Fleet, fleet_of, wait  # noqa: E402
from harness import Options, Result, main  # noqa: E402

MOST = 50
AT_WORK = 650e6
"""Bytes that a node was seen to need while its client trains, most of them PyTorch's: as many start as fit."""
IDLE_SECONDS = 30.0
ROUNDS = 1
TICKS = os.sysconf("SC_CLK_TCK")


def measure(options: Options) -> list[Result]:
    """Measure a deployment of as many nodes as fit, at most 50; with ``--quick`` eight.

    The SuperLink's database is in memory: a file was locked for too long when 23 nodes answered at once.
    """
    nodes = min(8 if options.quick else MOST, int(available() * 0.75 / AT_WORK))
    with tempfile.TemporaryDirectory() as folder, fleet_of(Path(folder), nodes, in_memory=True) as fleet:
        fleet.snnfl("register")
        names = [f"node-{index}" for index in range(nodes)]
        start = time.monotonic()
        for index, name in enumerate(names):
            fleet.start(name, fleet.node_command(index))
        wait(lambda: all("SuperNode ID" in fleet.log(name) for name in names), "every node is connected")
        connected = time.monotonic() - start
        time.sleep(10)  # what a start leaves behind
        roots = {name: process.pid for name, process in fleet.processes.items()}
        before = {name: cpu_seconds(members(pid)) for name, pid in roots.items()}
        time.sleep(IDLE_SECONDS)
        idle = {name: (cpu_seconds(members(pid)) - before[name]) / IDLE_SECONDS for name, pid in roots.items()}
        resting = {name: memory(members(pid)) for name, pid in roots.items()}
        working, seconds, spent = run(fleet, roots, nodes)
    rows = [row for row in working if row]
    peak = {name: max(sample[name] for sample in rows) for name in roots}
    messages = nodes * (1 + ROUNDS)
    per_node = "range over nodes"
    return [
        Result(name="SuperNodes on one SuperLink", samples=(float(nodes),), unit="nodes", note=f"of {MOST} at most"),
        Result(name="until all are connected", samples=(connected,), unit="s"),
        Result(name="memory of an idle node", samples=tuple(resting[n] / 1e6 for n in names), unit="MB", note=per_node),
        Result(name="memory of an idle SuperLink", samples=(resting["superlink"] / 1e6,), unit="MB"),
        Result(name="CPU of an idle node", samples=tuple(1e3 * idle[n] for n in names), unit="ms/s", note=per_node),
        Result(name="CPU of the SuperLink, nodes idle", samples=(1e3 * idle["superlink"],), unit="ms/s"),
        Result(
            name="memory of a node at work", samples=tuple(peak[n] / 1e6 for n in names), unit="MB", note="its peak"
        ),
        Result(
            name="memory of SuperLink and ServerApp at work", samples=(peak["superlink"] / 1e6,), unit="MB", note="peak"
        ),
        Result(
            name="CPU of all processes per message",
            samples=(spent / messages,),
            unit="CPU-s",
            note=f"{messages} messages, a process each, that imports PyTorch",
        ),
        Result(name="a round", samples=tuple(seconds), unit="s", note=f"{nodes} clients on {os.cpu_count()} cores"),
    ]


def run(fleet: Fleet, roots: dict[str, int], nodes: int) -> tuple[list[dict[str, float]], list[float], float]:
    """Play the rounds; return samples of memory by process, the rounds' seconds, and the CPU seconds of everything."""
    before = children_seconds(roots)
    overrides = [
        f"data.clients={nodes}",
        f"run.rounds={ROUNDS}",
        "run.name=load",
        "model.name=mlp",
        "training.epochs=1",
    ]
    process = fleet.submit(*overrides, "strategy.spiking=false", "evaluation.clients=false")
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        samples.append({name: memory(members(pid)) for name, pid in roots.items()})
        time.sleep(2)
    rows = fleet.rows("load")
    if [row["replies"] for row in rows] != [nodes] * ROUNDS:
        sys.exit(f"error: not every node took part:\n{fleet.log('run')[-2000:]}")
    return samples, [row["seconds_round"] for row in rows], children_seconds(roots) - before


def children_seconds(roots: dict[str, int]) -> float:
    """Return the CPU seconds of all processes, ended children of theirs included."""
    return sum(cpu_seconds(members(pid), ended=True) for pid in roots.values())


def members(root: int) -> list[Path]:
    """Return a process and all that descend from it."""
    parents = {folder: fields[1] for folder in Path("/proc").iterdir() if (fields := stat(folder)) is not None}
    found = [folder for folder in parents if folder.name == str(root)]
    for process in found:  # grows on the way
        found += [folder for folder, parent in parents.items() if parent == process.name]
    return found


def cpu_seconds(processes: Iterable[Path], *, ended: bool = False) -> float:
    """Sum the CPU seconds of processes; with ``ended`` those of the children that they have waited for, too."""
    columns = (11, 12, 13, 14) if ended else (11, 12)
    return sum(int(fields[i]) for process in processes if (fields := stat(process)) for i in columns) / TICKS


def stat(process: Path) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the command's name; ``None`` if it has ended, or is none."""
    if not process.name.isdecimal():
        return None
    try:
        return (process / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def memory(processes: Iterable[Path]) -> float:
    """Sum the proportional set sizes of processes, in bytes."""
    total = 0
    for process in processes:
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024.0


def available() -> float:
    """Return how many bytes of memory are free for new processes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main("deployment_load", measure)
