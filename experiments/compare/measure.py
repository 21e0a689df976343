"""Measure what a study asks of a finished cell beside its rounds, once: the result stays in the cell's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from safetensors.torch import load_file

from experiments.audit.command import attack_progress, audit_run, prepare, write_audits
from experiments.audit.found import Audit
from experiments.audit.report import detection, reconstructions
from experiments.compare.extras import AuditPlan, Extras
from snnfl.attacks import Budget
from snnfl.auditing.differences import AlikeRoundsError
from snnfl.auditing.measures import MEASURES
from snnfl.config import Config
from snnfl.data import test_batches
from snnfl.files import make_private, write_bytes
from snnfl.metrics import count_spikes, measure_activity
from snnfl.models import SpikingModel
from snnfl.spiking import load
from snnfl.training import load_arrays
from snnfl.training.evaluation import evaluation_mode
from snnfl.workspace import EVALUATION, Workspace
from strategies.lock import locked
from strategies.run_directory import AUDIT, SNN_FILE

Record: TypeAlias = dict[str, Any]
"""A measurement: labels as text, values as numbers, and under ``source`` where it belongs."""


def measure(config: Config, extras: Extras, folder: Path) -> None:
    """Measure what is asked of a finished cell, and write it in one step.

    Args:
        config: Of the cell.
        extras: What to measure.
        folder: Of the run.
    """
    if extras.file is None or (folder / extras.file).exists():
        return
    records, fragments = list[Record](), dict[str, str]()
    if extras.energy_images:
        records += energy_records(config, folder, extras.energy_images)
    if extras.audit is not None:
        found, fragments = _audited(extras.audit, folder)
        records += found
    text = json.dumps({"records": records, "fragments": fragments}, allow_nan=False)
    write_bytes(folder / extras.file, text.encode())


def energy_records(config: Config, folder: Path, images: int) -> Iterator[Record]:
    """Yield the energy of the final spiking network, simulated for its time steps, and of its ANN, per image."""
    work = Workspace(config)
    if not len(work.server_data.test_labels):
        return  # only nodes have data
    inputs = torch.cat([inputs for inputs, _ in test_batches(work.server_data, images, images)])
    if isinstance(work.model, SpikingModel):
        load_arrays(work.model, load_file(folder / SNN_FILE))
        with evaluation_mode(work.model), work.drawing(EVALUATION):
            counted = measure_activity(work.model, inputs, work.structure).count
    else:
        counted = count_spikes(load(folder / SNN_FILE), inputs, steps=config.conversion.steps)
    if counted is None:
        return
    total = counted.total
    for name, energy, operations in (
        ("SNN", counted.energy, total.acs + total.macs),
        ("ANN", counted.ann_energy, total.ann_macs),
    ):
        yield {
            "source": "energy",
            "network": name,
            "energy": energy.compute / 1e3,
            "energy_with_memory": energy.total / 1e3,
            "operations": float(operations),
        }


def _audited(plan: AuditPlan, folder: Path) -> tuple[list[Record], dict[str, str]]:
    """Audit a cell with every budget; the report in its folder and what a study shows of it are of the largest."""
    make_private(folder / AUDIT)
    with locked(folder / AUDIT):
        return _audited_alone(plan, folder)


def _audited_alone(plan: AuditPlan, folder: Path) -> tuple[list[Record], dict[str, str]]:
    records, audits = list[Record](), list[Audit]()
    for scope in plan.scopes:
        try:
            prepared = prepare(folder, plan.attacks, scope, controls=False)
        except AlikeRoundsError:
            continue  # there is nobody to attack, which is what the study asks
        for iterations in plan.iterations:
            budget = Budget(iterations=iterations, restarts=plan.restarts)
            with attack_progress(Console(quiet=True)) as progress:
                audit = audit_run(prepared, budget, progress)
            audits.append(audit)
            who = {
                "iterations": str(iterations),
                "colluding": str(scope.colluding),
                "differences": str(int(scope.differences)),
            }
            records += [record | who for record in (*attack_records(audit), *best_records(audit))]
    last = audits[-1]
    write_audits(folder / AUDIT, [last], budget)
    records += [*bias_records(last), *threshold_records(last)]
    return records, {"reconstructions": str(reconstructions(last)), "detectors": str(detection(last))}


def best_records(audit: Audit) -> Iterator[Record]:
    """Yield what the best attack of each round reached, chosen for each client on the others."""
    for best in audit.best:
        yield {
            "source": "best attacks",
            "round": str(best.server_round),
            "best_attack": best.value,
            "best_attack_gain": best.over_floor.value,
        }


def attack_records(audit: Audit) -> Iterator[Record]:
    """Yield what each attack reached; what was refused or could not be scored has no number."""
    for entry in audit.entries:
        if entry["value"] is None:
            continue
        floor, measures = entry["floor"], MEASURES[entry["kind"]]
        first, judged = measures.metrics[0], [metric.name for metric in measures.judged]
        yield {
            "source": "attacks",
            "round": str(entry["round"]),
            "attack": entry["attack"],
            **{name: summary["value"] for name, summary in entry["metrics"].items()},
            **{f"floor_{name}": floor[name] for name in judged},
            f"{first.name}_gain": first.gain(entry["value"], floor[first.name]),
            "verdict": entry["verdict"],
        }


def bias_records(audit: Audit) -> Iterator[Record]:
    """Yield how far each guess of a client's private biases is off (SNFL, Figure 3A)."""
    for error in audit.biases:
        yield {
            "source": "biases",
            "round": str(error.server_round),
            "client": str(error.partition),
            "guess": error.source,
            "bias_distance": error.distance,
            "bias_relative_distance": error.relative if error.relative != float("inf") else None,
            "bias_equal": error.equal,
        }


def threshold_records(audit: Audit) -> Iterator[Record]:
    """Yield the thresholds that the server received, by client and layer (SNFL, Figure 3C); per channel their mean."""
    layers = list(dict.fromkeys(found.layer for found in audit.thresholds))
    for found in audit.thresholds:
        guilty = audit.attackers(found.server_round)
        yield {
            "source": "thresholds",
            "round": str(found.server_round),
            "client": str(found.partition),
            "role": "poisoned" if found.partition in guilty else "honest",
            "layer": str(layers.index(found.layer) + 1),
            "threshold": found.value,
        }
