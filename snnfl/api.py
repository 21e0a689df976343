"""Run, read, audit and compare federations from Python: what ``import snnfl`` offers, beside its rooms.

Every function takes what the command of the same name takes, and returns what that command writes. Mistakes raise what
the command prints: a :class:`~snnfl.config.ConfigError`, or the error that is named below, of one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnfl.config import Config, ConfigError, ConversionConfig, compose
from snnfl.launch import use_app

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

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

        Raises:
            ConfigError: If the run left none.
        """
        from safetensors.torch import load_file

        from snnfl.workspace import Workspace

        use_app()
        from strategies.run_directory import ANN_FILE

        path = self._final(ANN_FILE)
        model = Workspace(self.config).model
        model.load_state_dict(load_file(path), strict=False)
        return model.eval()

    def snn(self) -> SpikingNetwork:
        """Read the server's spiking network.

        Raises:
            ConfigError: If the run left none, as a plain one doesn't.
        """
        from snnfl.spiking import SpikingNetwork

        use_app()
        from strategies.run_directory import SNN_FILE

        return SpikingNetwork.load(self._final(SNN_FILE))

    def _final(self, name: str) -> Path:
        if not (self.path / name).exists():
            raise ConfigError(f"{self.path}: no {name}; a finished run leaves it, the spiking one in an S-run")
        return self.path / name


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        path: Folder of ``report.html`` and the same numbers as JSON and CSV.
        entries: One dictionary per run, round and attack: threat model, value, interval, floor and verdict.
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
        tables: One dictionary per cell of each table: its row and column, mean, deviation and number of seeds.
    """

    path: Path
    runs: dict[str, Run]
    tables: list[dict[str, Any]]

    def __repr__(self) -> str:
        """Name the report and count the runs."""
        return f"<Study {self.path / 'report.html'}: {len(self.runs)} runs>"


def run(
    config: Config | Mapping[str, Any] | str | Path | None = None, *, progress: bool = True, **overrides: Any
) -> Run:
    """Run one federation, as ``snnfl run``.

    Args:
        config: A YAML file, a mapping of sections, a :class:`~snnfl.config.Config`, or ``None`` for the defaults.
        progress: Whether to show a bar and a line per round.
        overrides: Options over it, by section: ``data={"clients": 5}``, or ``**{"data.clients": 5}``.

    Returns:
        The finished run.

    Raises:
        ConfigError: For a mistake in the options, or a folder that holds an earlier run.
        EngineError: If the engine cannot run it.

    >>> import snnfl  # doctest: +SKIP
    >>> run = snnfl.run(data={"clients": 3}, run={"rounds": 2, "name": "first"})  # doctest: +SKIP
    """
    use_app()
    from experiments.cli import run_and_show

    resolved = compose(config, overrides)
    run_and_show(resolved, _console(progress))
    return load_run(Path(resolved.run.directory).expanduser() / resolved.run.name)


def load_run(path: str | Path) -> Run:
    """Read the folder of a run, finished or not.

    Raises:
        ConfigError: If it holds none, or something of it is damaged.
    """
    use_app()
    from strategies.run_directory import read_run

    folder = Path(path).expanduser()
    config, metrics, environment = read_run(folder)
    return Run(path=folder, config=config, metrics=metrics, environment=environment)


def audit(
    runs: Run | str | Path | Sequence[Run | str | Path],
    *,
    attacks: Iterable[str] = (),
    rounds: Iterable[int] = (),
    clients: Iterable[int] = (),
    deny: Iterable[str] = (),
    labels: bool = False,
    iterations: int = 300,
    restarts: int = 1,
    controls: bool = True,
    output: str | Path | None = None,
    progress: bool = True,
) -> Audit:
    """Attack what the server of runs has seen, as ``snnfl audit``; they were played with ``audit.record=true``.

    Args:
        runs: One or several, or their folders.
        attacks: Names; empty for all that apply.
        rounds: To attack; empty for all that are recorded.
        clients: Partitions; likewise.
        deny: Facts that the attacker lacks.
        labels: Give the private labels: a diagnosis.
        iterations: Per start.
        restarts: Random starts per victim.
        controls: Whether clients' plain twins, and plain updates with noise, are attacked too.
        output: Folder of the report; ``None`` for ``audit/`` of the first run.
        progress: Whether to show a bar and the scorecard.

    Raises:
        ConfigError: For an unknown attack, round or fact.
        RecordingError: For a folder without a recording, or a damaged one.
        ThreatModelError: If labels are granted that nobody told.
    """
    use_app()
    from experiments.audit.command import audit_runs
    from snnfl.attacks import Budget
    from snnfl.audit.victims import scope_of

    several = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    folders = [each.path if isinstance(each, Run) else Path(each).expanduser() for each in several]
    if not folders:
        raise ConfigError("runs=[]: nothing to audit; give at least one run")
    folder, found = audit_runs(
        folders,
        tuple(attacks),
        scope_of(rounds=rounds, partitions=clients, labels=labels, denied=deny),
        Budget(iterations=iterations, restarts=restarts),
        controls=controls,
        output=None if output is None else Path(output).expanduser(),
        console=_console(progress),
    )
    return Audit(path=folder, entries=found)


def compare(study: str | Path, *, jobs: int | None = None, progress: bool = True, **overrides: Any) -> Study:
    """Run every cell of a study that isn't finished, and write its tables, figures and report, as ``snnfl compare``.

    Args:
        study: Its YAML file (docs/compare.md).
        jobs: Cells at a time; ``None`` for one per core, or per GPU.
        progress: Whether to show a bar and the tables.
        overrides: Options of every cell, as in :func:`run`.

    Raises:
        ConfigError: For a study with a mistake, before anything runs.
        EngineError: If a cell failed; the others are finished.
    """


def convert(model: nn.Module, images: Tensor, config: ConversionConfig | None = None) -> SpikingNetwork:
    """Convert a trained network to a calibrated spiking one.

    Args:
        model: Any network that ``torch.fx`` traces, of the layers that docs/how-to/own-model.md lists.
        images: Some tens of calibration images, normalised as in training, ``[N, ...]``.
        config: Steps, thresholds and calibration; ``None`` for :meth:`~snnfl.config.ConversionConfig.fast`, 32 steps.

    Raises:
        ConversionError: If the model doesn't convert, naming the layer and the way out.
        ValueError: If the images are empty, not finite, or don't fit the model.
    """
    from snnfl.conversion import convert as convert_network

    return convert_network(model, images, ConversionConfig.fast() if config is None else config)


def _console(progress: bool) -> Console:
    from rich.console import Console

    return Console(quiet=not progress)
