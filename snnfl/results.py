"""What the functions of :mod:`snnfl.api` return: a run, an audit, a study, published networks, who was in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnfl.config import Config, ConfigError, counted, spikes_natively
from snnfl.launch import use_app
from snnfl.plugins import check_same, loaded

if TYPE_CHECKING:
    from torch import nn

    from snnfl.models import SpikingModel
    from snnfl.spiking import SpikingNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run's folder, read.

    Attributes:
        path: The folder; `docs/run-directory.md` says what its files hold.
        config: Its resolved options.
        metrics: A dictionary per round, as in ``metrics.jsonl``: ``pandas.DataFrame(run.metrics)`` is a table.
        environment: Versions, commit and command.
    """

    path: Path
    config: Config
    metrics: list[dict[str, Any]]
    environment: dict[str, Any]

    def __repr__(self) -> str:
        """Name the folder and how far the run is."""
        return f"<Run {self.path}: {len(self.metrics)} of {self.config.run.rounds} rounds>"

    def ann(self) -> nn.Module:
        """Build the model with the final weights that clients receive, in evaluation mode.

        In an S-run these have no biases but the initial ones, unless ``strategy.bias_back`` is on: clients keep theirs.
        In a FedBN run likewise the batch normalisation is the initial one.

        Raises:
            ConfigError: If the run has left none yet, or was run with a plug-in that this process lacks.
        """
        use_app()
        from strategies.run_directory import ANN_FILE

        if spikes_natively(self.config):
            neuron = self.config.model.neuron
            why = f"clients train spiking networks (model.neuron={neuron})"
            raise ConfigError(f"{self.path}: no {ANN_FILE}: {why}; take snn()")
        return self._model(ANN_FILE)

    def snn(self) -> SpikingNetwork | SpikingModel:
        """Read the server's spiking network: one that was converted, or the model if it was trained as a spiking one.

        Raises:
            ConfigError: If the run has left none yet, or never will, as a plain one; or as :meth:`ann`.
        """
        from snnfl.models import SpikingModel
        from snnfl.spiking import load

        use_app()
        from strategies.run_directory import SNN_FILE

        if not spikes_natively(self.config):
            return load(self._final(SNN_FILE))
        model = self._model(SNN_FILE)
        if not isinstance(model, SpikingModel):
            raise TypeError(f"{type(model).__name__}: expected a SpikingModel")
        return model

    def _model(self, name: str) -> nn.Module:
        """Build the model with the weights of a file, in evaluation mode."""
        from safetensors.torch import load_file

        from snnfl.workspace import Workspace

        path = self._final(name)
        if (missing := check_same(self.environment.get("plugins"), loaded(), versions=False)) is not None:
            raise ConfigError(f"{self.path}: {missing}")
        model = Workspace(self.config).model
        model.load_state_dict(load_file(path), strict=False)
        return model.eval()

    def _final(self, name: str) -> Path:
        if not (self.path / name).exists():
            raise ConfigError(
                f"{self.path}: no {name}; a finished run leaves it: that of an ANN, and that of a spiking "
                "network where clients convert or train one (strategy.spiking, model.neuron)"
            )
        return self.path / name


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        path: Folder of ``report.html`` and the same numbers as JSON and CSV.
        entries: One dictionary per run, round and attack, as in ``scorecard.json``: threat model, metrics with their
            intervals, floors and verdict.
    """

    path: Path
    entries: list[dict[str, Any]]

    def __repr__(self) -> str:
        """Name the report and count the verdicts."""
        verdicts = [entry["verdict"] for entry in self.entries]
        counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        return f"<Audit {self.path / 'report.html'}: {counted}>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """A study's folder, with its finished runs.

    Attributes:
        path: Folder of ``report.html``, tables and figures.
        runs: By the cell's name, such as ``"algorithm=S-FedAvg, seed=0"``.
        tables: One dictionary per number of each table: its row and column, mean, deviation and number of seeds.
    """

    path: Path
    runs: dict[str, Run]
    tables: list[dict[str, Any]]

    def __repr__(self) -> str:
        """Name the report and count the runs."""
        return f"<Study {self.path / 'report.html'}: {counted(len(self.runs), 'run')}>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """What membership attacks found.

    Attributes:
        entries: One dictionary per attack: ``verdict``, ``auc``, ``tpr_at_1``, ``balanced_accuracy`` and more, with
            intervals; the last one is of the best attack, chosen for each target on the others.
        gap: Train accuracy less test accuracy of the targets, with its interval.
        blind: AUC of a classifier that sees no network; above 0.5, members differ from others in something else.
        told: All of it in a sentence.
        path: Folder of ``report.html`` and ``results.json``, if one was asked for.
    """

    entries: list[dict[str, Any]]
    gap: dict[str, Any]
    blind: dict[str, Any]
    told: str
    path: Path | None = None

    def __repr__(self) -> str:
        """Say what was found."""
        return f"<Membership: {self.told}>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Published:
    """Networks that were published without data, and what was measured of them.

    Attributes:
        path: Folder of tables and figures.
        networks: The file of each published network, by its setting, such as ``"data.source=mnist, seed=0"``;
            :func:`snnfl.private_snn.load` reads it.
        accuracies: One dictionary per number: setting, seed, network, ``steps`` (``None`` of the ANN) and ``accuracy``.
        attacks: One dictionary per attack on a network of a setting, over seeds: the columns of ``attacks.csv``, with
            ``None`` where there is no number; empty if nobody attacked.
    """

    path: Path
    networks: dict[str, Path]
    accuracies: list[dict[str, Any]]
    attacks: list[dict[str, Any]]

    def __repr__(self) -> str:
        """Name the folder and count."""
        found = f", {counted(len(self.attacks), 'result')} of attacks" if self.attacks else ""
        return f"<Published {self.path}: {counted(len(self.networks), 'network')}{found}>"
