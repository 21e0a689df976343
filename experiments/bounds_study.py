"""What the bound on updates costs honest clients, and what it leaves to one liar of six.

``python -m experiments.bounds_study`` prints the tables of "What the bound leaves" in ``docs/backdoor.md``, on the real
digits that come with scikit-learn. On one core it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.client_app import app as honest
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, compose, flatten
from snnfl.protocol import ARRAYS, CONFIG, SERVER_ROUND
from snnfl.updates import scale_of
from snnfl.workspace import workspace
from strategies.server_app import server_app

COMMON = ("run.overwrite=true", "run.keep_checkpoints=0", "evaluation.images=0", "evaluation.clients=false")

HONEST = (
    *("data.clients=10", "data.partition=dirichlet", "data.beta=0.1", "run.rounds=3", "conversion.steps=4"),
    "evaluation.images=60",
)
SETTINGS: Mapping[str, Sequence[str]] = {
    "S-FedAvg, LeNet-5": (),
    "S-FedAvg, MLP": ("model.name=mlp",),
    "S-FedAvg, biases back": ("strategy.bias_back=true", "model.conv_bias=true"),
    "S-FedAdam": ("strategy.name=fedadam",),
    "FedAvg": ("strategy.spiking=false",),
    "FedAvg, no batch normalisation": ("strategy.spiking=false", "model.batch_norm=false"),
    "FedAvg, one client a round": ("strategy.spiking=false", "strategy.fraction_train=0.1"),
}
BOUNDS = (100, 10)

CLIENTS, ROUNDS, ATTACK = 6, 12, 4
ATTACKED = (
    *(f"data.clients={CLIENTS}", "data.partition=iid", f"run.rounds={ROUNDS}", "training.epochs=2"),
    *("training.batch_size=32", "training.learning_rate=0.05"),
)
PARTS = (0.01, 0.1, 0.99)


def refusals(setting: Sequence[str], seeds: int, bound: float) -> tuple[int, int]:
    """Play honest runs; return how many updates were refused, and how many there were."""
    refused = sent = 0
    for seed in range(seeds):
        rows = play(honest, *HONEST, *setting, f"run.seed={seed}", f"strategy.update_bound={bound}")
        refused += sum(row["refused"] for row in rows)
        sent += sum(row["refused"] + row["replies"] for row in rows)
    return refused, sent


class Liar(ClientApp):
    """The project's client, but that partition 0 sends what goes by a part of the bound in each array.

    Args:
        config: Of the run.
        part: Of the bound.
        rounds: In which it lies.
        thresholds: Whether it multiplies its thresholds instead, and leaves the rest as it is.
    """

    def __init__(self, config: Config, part: float, rounds: Sequence[int], *, thresholds: bool = False) -> None:
        super().__init__()
        self.start = workspace(config).initial_state
        self.part = part
        self.rounds = rounds
        self.thresholds = thresholds

    def __call__(self, message: Message, context: Context) -> Message:
        """Train honestly, then lie."""
        reply = honest(message, context)
        record = message.content.get(CONFIG)
        if record is None or int(context.node_config["partition-id"]) or record[SERVER_ROUND] not in self.rounds:
            return reply
        trained = reply.content.array_records[ARRAYS].to_torch_state_dict()
        if self.thresholds:
            made = {n: a * 1000 * self.part if n.endswith("threshold") else a for n, a in trained.items()}
        else:
            sent = message.content.array_records[ARRAYS].to_torch_state_dict()
            made = {name: self._away(name, array, sent[name]) for name, array in trained.items()}
        reply.content[ARRAYS] = ArrayRecord(made)
        return reply

    def _away(self, name: str, trained: Tensor, sent: Tensor) -> Tensor:
        """Go against the own descent, by a part of a hundred times the scale of the start."""
        distance = 100 * self.part * scale_of(self.start[name])
        if name.endswith("running_var"):
            return (sent.sqrt() + distance) ** 2
        step = trained - sent
        return sent - distance * step / float(step.square().mean().sqrt().clamp(min=1e-12))


def play(app: ClientApp | type[Liar], *overrides: str, **lie: Any) -> list[dict[str, Any]]:
    """Play a run; return its rows. A kind of client is made for the run, with the further arguments."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = compose(None, [*COMMON, *overrides, f"run.directory={directory}"])
        made = app if isinstance(app, ClientApp) else app(config, **lie)
        run_in_process(server_app(rows.append), made, run_config=flatten(config), clients=config.data.clients)
    return rows


def accuracies(strategy: str, part: float, always: bool, seeds: int) -> tuple[float, float, int]:
    """Play runs with a liar; return the mean accuracy after its first lie and at the end, and the refused updates."""
    rounds = range(ATTACK, ROUNDS + 1) if always else (ATTACK,)
    options = (*ATTACKED, "strategy.spiking=false", f"strategy.name={strategy}")
    runs = [play(Liar, *options, f"run.seed={seed}", part=part, rounds=rounds) for seed in range(seeds)]
    first, last = (statistics.fmean(rows[n]["server_ann_accuracy"] for rows in runs) for n in (ATTACK - 1, -1))
    return first, last, sum(row["refused"] for rows in runs for row in rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bounds_study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="of each honest setting (default: %(default)s)")
    parser.add_argument("--liars-seeds", type=int, default=3, help="of each setting with a liar (default: %(default)s)")
    arguments = parser.parse_args()
    for name in ("flwr", "strategies"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(
        f"| honest, Dir(0.1), seeds 0 to {arguments.seeds - 1} | updates |",
        *(f" {bound} |" for bound in BOUNDS),
        sep="",
    )
    print("|---|---|" + "---|" * len(BOUNDS))
    for name, setting in SETTINGS.items():
        counted = [refusals(setting, arguments.seeds, bound) for bound in BOUNDS]
        print(f"| {name} | {counted[0][1]} |", *(f" {refused} |" for refused, _ in counted), sep="", flush=True)
    print("\n| strategy | part of the bound | lies in | accuracy after | at the end | refused |")
    print("|---|---|---|---|---|---|")
    for strategy, always, part in itertools.product(("fedavg", "krum"), (False, True), PARTS):
        first, last, refused = accuracies(strategy, part, always, arguments.liars_seeds)
        lies = f"rounds {ATTACK} to {ROUNDS}" if always else f"round {ATTACK}"
        print(f"| {strategy} | {part:.0%} | {lies} | {first:.2f} | {last:.2f} | {refused} |", flush=True)
    print("\n| thresholds times | server SNN after | at the end | refused |\n|---|---|---|---|")
    for part in (0.001, *PARTS):
        runs = [
            play(Liar, *ATTACKED, f"run.seed={seed}", part=part, rounds=(ATTACK,), thresholds=True)
            for seed in range(arguments.liars_seeds)
        ]
        first, last = (statistics.fmean(rows[n]["server_snn_accuracy"] for rows in runs) for n in (ATTACK - 1, -1))
        refused = sum(row["refused"] for rows in runs for row in rows)
        print(f"| {1000 * part:g} | {first:.2f} | {last:.2f} | {refused} |", flush=True)


if __name__ == "__main__":
    main()
