"""Measure what an S-run loses under secure aggregation, and what its smaller vector would lose.

S-FedAvg on digits with ten clients (``experiments/conf/demo.yaml``), once unprotected and twice under masks: with the
spiking network in the vector, as S-FedAvg has it, and without its weights, which the server then folds from the
averages itself, as it does for optimisers. One line per form: ``python benchmarks/secure_forms.py --seeds 3``.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import torch
from harness import use_app

from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten

use_app()

FORMS = {
    "unprotected": ["strategy.secure_aggregation=false"],
    "masked, W_A + BN + W_S + b' + V": ["strategy.secure_aggregation=true"],
    "masked, the server folds": ["strategy.secure_aggregation=true"],
}
SMALLER = "masked, the server folds"


def accuracy(form: str, seed: int, rounds: int, folder: str) -> tuple[float, float, float]:
    """Play a run; return the accuracies of the server's spiking network and its analog twin, and MB up per round."""
    from clients.client_app import app as client_app
    from strategies import server_app

    rows = list[dict[str, float]]()
    config = compose(
        Path("experiments/conf/demo.yaml"),
        [
            *FORMS[form], f"run.seed={seed}", f"run.rounds={rounds}", f"run.directory={folder}", "run.overwrite=true",
            "run.keep_checkpoints=0", "evaluation.clients=false",
        ],
    )  # fmt: skip
    rule = {"network_base": None, "follows": form == SMALLER}
    with mock.patch.object(server_app, "network_rule", return_value=rule):
        app = server_app.server_app(rows.append)
        run_in_process(app, client_app, run_config=flatten(config), clients=config.data.clients)
    return rows[-1]["server_snn_accuracy"], rows[-1]["server_ann_accuracy"], rows[-1]["bytes_up"] / 1e6


def main() -> None:
    """Print a line per form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            found = [accuracy(form, seed, given.rounds, folder) for seed in range(given.seeds)]
            snn, ann = ([100 * each[number] for each in found] for number in (0, 1))
            print(
                f"{form}: SNN {statistics.mean(snn):.2f} % ({', '.join(f'{v:.1f}' for v in snn)}), "
                f"analog twin {statistics.mean(ann):.2f} % ({', '.join(f'{v:.1f}' for v in ann)}), "
                f"{found[0][2]:.3f} MB up a round",
                flush=True,
            )


if __name__ == "__main__":
    main()
