"""Run, read, audit and compare federations from Python, convert and publish networks, ask who was in: ``import snnfl``.

Every function takes what the command of the same name takes, and returns what that command writes. A mistake raises
what the command prints: a :class:`~snnfl.config.ConfigError`, or the error that is named below, of one line. Ctrl-C
raises ``KeyboardInterrupt``; what is complete is kept, and ``run={"resume": True}`` goes on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnfl.config import Config, ConfigError, ConversionConfig, ConversionSearch, assignments
from snnfl.launch import importing, use_app
from snnfl.plugins import load_installed, load_listed, resolve
from snnfl.results import Audit, Membership, Published, Run, Study

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from snnfl.auditing.foreign import App
    from snnfl.spiking import SpikingNetwork


def run(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    plugins: Iterable[str | Path] = (),
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Run one federation, as ``snnfl run``.

    Args:
        config: A YAML file, a mapping of sections, a :class:`~snnfl.config.Config`, or ``None`` for the defaults.
        plugins: Your own Python files or modules that register what the options name, beside those that the file lists.
        progress: Whether to show a bar and a line per round.
        overrides: Options over it, by section: ``data={"clients": 5}``, or ``**{"data.clients": 5}``.

    Returns:
        The finished run. A warning says where it isn't as configured: a client that never answered, for instance.

    Raises:
        ConfigError: For a mistake in the options, or a folder that holds an earlier run.
        EngineError: If the engine cannot run it.
        RunFailedError: If no client sent a valid update.
    """
    with _called() as console:
        from experiments.running import run_and_show
        from strategies.attendance import shortcomings
        from strategies.run_directory import run_path

        resolved = resolve(config, overrides, plugins)
        run_and_show(resolved, console(progress))
        done = load_run(run_path(resolved))
    for line in shortcomings(resolved, done.metrics):
        warnings.warn(f"finished, but not as configured: {line}", stacklevel=2)
    return done


def load_run(path: str | Path, *, plugins: Iterable[str | Path] = ()) -> Run:
    """Read the folder of a run, finished or not.

    Args:
        path: The folder.
        plugins: Those that it was run with, if its networks or its data are needed.

    Raises:
        ConfigError: For a mistake in a plug-in.
        RunFileError: If it holds none, or something of it is damaged.
    """
    use_app()
    from strategies.run_directory import METRICS_FILE, read_config, read_environment, read_metrics

    load_installed()
    load_listed([*plugins], None)
    folder = Path(path).expanduser()
    config = read_config(folder)
    config = replace(
        config, run=replace(config.run, resume=False, overwrite=False)
    )  # how it was called, not what it is
    metrics = read_metrics(folder, growing=True) if (folder / METRICS_FILE).exists() else []
    return Run(path=folder, config=config, metrics=metrics, environment=read_environment(folder))


def audit(
    runs: Run | str | Path | Sequence[Run | str | Path],
    *,
    attacks: Iterable[str] = (),
    rounds: Iterable[int] = (),
    clients: Iterable[int] = (),
    deny: Iterable[str] = (),
    colluding: int = 0,
    differences: bool = False,
    labels: bool = False,
    iterations: int = 300,
    restarts: int = 1,
    controls: bool = True,
    side_channel: bool = False,
    generative_model: nn.Module | None = None,
    app: App | None = None,
    output: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    progress: bool = True,
) -> Audit:
    """Attack what the server of runs has seen, as ``snnfl audit``; they were played with ``audit.record=true``.

    Args:
        runs: One or several, or their folders.
        attacks: Names; empty for all that apply.
        rounds: To attack; empty for all that are recorded.
        clients: Partitions; likewise.
        deny: Facts that the attacker lacks.
        colluding: With secure aggregation, how many clients of each round tell the server their updates.
        differences: With secure aggregation, whether the server tells clients apart by the sums of rounds in which not
            everybody took part.
        labels: Give the private labels: a diagnosis.
        iterations: Per start.
        restarts: Random starts per victim.
        controls: Whether clients' plain twins, and plain updates with noise, are attacked too.
        side_channel: Whether thresholds of S-updates are asked for members and properties of the calibration images.
        generative_model: Draws images of the same kind, for the attack ``generative``: a module with ``latent_shape``
            that turns normal latents into pixels in [0, 1].
        app: If ``runs`` is the recording of another Flower app, what you say of it; controls are of runs of ours.
        output: Folder of the report; ``None`` for ``audit/`` of the first run.
        plugins: As for :func:`run`: those that the runs were made with, and attacks.
        progress: Whether to show a bar and the scorecard.

    Raises:
        ConfigError: For an unknown attack, round or fact.
        RecordingError: For a folder without a recording, or a damaged one.
        ThreatModelError: If labels are granted that nobody told.
    """
    names, denied = _names("attacks", attacks), _names("deny", deny)
    several = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    folders = [each.path if isinstance(each, Run) else Path(each).expanduser() for each in several]
    if not folders:
        raise ConfigError("runs=[]: nothing to audit; give at least one run")
    with _called() as console:
        with importing():
            from experiments.audit.app import audit_app
            from experiments.audit.command import audit_runs
            from snnfl.attacks import Budget
            from snnfl.auditing.victims import scope_of

        load_installed()
        load_listed([*plugins], None)
        scope = scope_of(
            rounds=rounds,
            partitions=clients,
            labels=labels,
            denied=denied,
            generative_model=generative_model,
            colluding=colluding,
            differences=differences,
        )
        budget = Budget(iterations=iterations, restarts=restarts)
        place, shown = None if output is None else Path(output).expanduser(), console(progress)
        if app is None:
            folder, audits = audit_runs(
                folders,
                names,
                scope,
                budget,
                controls=controls,
                side_channel=side_channel,
                output=place,
                console=shown,
            )
        else:
            folder, audits = audit_app(
                folders, app, names, scope, budget, side_channel=side_channel, output=place, console=shown
            )
    return Audit(path=folder, entries=[entry for each in audits for entry in each.entries])


def compare(
    study: str | Path,
    *,
    jobs: int | None = None,
    plugins: Iterable[str | Path] = (),
    progress: bool = True,
    **overrides: Any,
) -> Study:
    """Run every cell of a study that isn't finished, and write its tables, figures and report, as ``snnfl compare``.

    Args:
        study: Its YAML file (docs/compare.md).
        jobs: Cells at a time; ``None`` for one per core, or per GPU.
        plugins: As for :func:`run`.
        progress: Whether to show a bar and the tables.
        overrides: Options of every cell, as in :func:`run`.

    Raises:
        ConfigError: For a study with a mistake, before anything runs.
        EngineError: If a cell failed; the others are finished.
    """
    with _called() as console:
        from experiments.compare.command import compare as run_study

        made = run_study(Path(study), assignments(overrides), [*plugins], jobs=jobs, console=console(progress))
        runs = {cell.name: load_run(cell.path) for cell in made.finished}
    tables = [
        {
            "table": view.title,
            "value": view.value,
            "row": entry.row,
            "column": entry.column,
            "mean": entry.mean,
            "deviation": entry.deviation,
            "seeds": len(entry.values),
        }
        for view, filled in made.tables
        for entry in filled
    ]
    return Study(path=made.study.directory, runs=runs, tables=tables)


def convert(
    model: nn.Module, images: Tensor, config: ConversionConfig | ConversionSearch | None = None
) -> SpikingNetwork:
    """Convert a trained network to a calibrated spiking one.

    Args:
        model: Any network that ``torch.fx`` traces, of the layers that docs/how-to/convert.md lists.
        images: Some tens of calibration images, normalised as in training, ``[N, ...]``.
        config: Steps, thresholds and calibration, or a search among some, such as ``ConversionConfig.search(steps=8)``,
            by these images; ``None`` for :meth:`~snnfl.config.ConversionConfig.fast`, 32 steps.

    Raises:
        ConfigError: If one of the first and last is something else.
        ConversionError: If the model doesn't convert, naming the layer and the way out.
        ValueError: If the images are empty, not finite, or don't fit the model.
    """
    from torch import nn

    from snnfl.conversion import convert as convert_network

    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module with its weights loaded, found {type(model).__name__}")
    if not isinstance(config, ConversionConfig | ConversionSearch | None):
        found = f"{type(config).__name__} {config!r}"
        raise ConfigError(f"config: expected a ConversionConfig, such as ConversionConfig.fast(steps=8), found {found}")
    return convert_network(model, images, ConversionConfig.fast() if config is None else config)


def membership(
    networks: Sequence[nn.Module | SpikingNetwork],
    inputs: Tensor,
    labels: Tensor,
    members: Tensor,
    *,
    nobody: tuple[Tensor, Tensor] | None = None,
    attacks: Iterable[str] = (),
    deny: Iterable[str] = (),
    targets: Sequence[int] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
) -> Membership:
    """Ask of your own networks who was in: the suite of ``snnfl membership``, on networks that you have trained.

    Train several in the same way, each on a random half of the samples, drawn independently: each in turn is the
    target, and the others are its shadows. With one network only attacks without shadows can run.

    Args:
        networks: Map ``[batch, *input_shape]`` to logits ``[batch, classes]``, or are what :func:`convert` returned.
        inputs: The samples, ``[N, *input_shape]``, as networks take them, without augmentation.
        labels: ``[N]``, int64.
        members: Which network was trained on which sample, bool ``[networks, N]``. Attacks see the shadows' alone.
        nobody: Inputs and labels of samples of the same kind that no network was trained on; some attacks need them.
        attacks: Names (``snnfl membership --list``); empty for all that need no further networks.
        deny: Facts that the attacker lacks.
        targets: Numbers of the networks to attack; ``None`` for all.
        seed: Of the attacks' random draws.
        output: Folder for ``report.html`` and ``results.json``; ``None`` to write nothing.
        plugins: As for :func:`run`: attacks of your own.

    Raises:
        ConfigError: For an unknown attack or fact, or arrays that don't fit.
    """
    from snnfl.auditing.membership import run_attacks
    from snnfl.auditing.membership_networks import applicable, trials_of_networks
    from snnfl.auditing.membership_scores import results
    from snnfl.threat import MembershipKnowledge

    load_installed()
    load_listed([*plugins], None)
    names, knowledge = applicable(_names("attacks", attacks)), MembershipKnowledge().without(_names("deny", deny))
    trials = trials_of_networks(
        networks, inputs, labels, members, nobody=nobody, attacks=names, knowledge=knowledge, targets=targets
    )
    found = results(trials, run_attacks(trials, names, seed=seed))
    use_app()
    from experiments.membership.report import sentence, write_report

    folder = None if output is None else Path(output).expanduser()
    if folder is not None:
        write_report(folder, [found])
    return Membership(
        entries=found["entries"], gap=found["gaps"]["gap"], blind=found["blind"], told=sentence(found), path=folder
    )


def privatesnn(
    study: Run | str | Path,
    *,
    attacks: bool = False,
    plugins: Iterable[str | Path] = (),
    progress: bool = True,
    **overrides: Any,
) -> Published:
    """Publish networks without data, and measure them, as ``snnfl privatesnn run``; what is finished is kept.

    Args:
        study: Its YAML file (docs/private-snn.md), or a finished run, whose server's network is published.
        attacks: Whether what is published is attacked, too, as by ``snnfl privatesnn attack``.
        plugins: As for :func:`run`.
        progress: Whether to show bars and tables.
        overrides: Options, by section: ``publishing={"steps": 16}``; of a run those of ``synthesis``, ``publishing``,
            ``encryption`` and ``attack`` alone.

    Raises:
        ConfigError: For a mistake, before anything is computed.
        RunFileError: If a folder holds no run.
        RunFailedError: If training or encryption diverges.
    """
    place = study.path if isinstance(study, Run) else Path(study).expanduser()
    given, own = assignments(overrides), [*plugins]
    with _called() as console:
        from experiments.privatesnn.attack import attack_published
        from experiments.privatesnn.checking import check_attacks
        from experiments.privatesnn.command import accuracies_of, make_published
        from experiments.privatesnn.study import read_private_study
        from experiments.privatesnn.thefts import with_numbers

        if attacks:  # what they lack is told before networks are made
            check_attacks(read_private_study(place, given, own))
        made = make_published("run", place, given, own, console=console(progress))
        lines = attack_published(place, given, own, console=console(progress))[1] if attacks else []
    return Published(
        path=made.directory,
        networks={setting.name: setting.published for setting in made.settings},
        accuracies=[row for setting in made.settings for row in accuracies_of(setting)],
        attacks=[*map(with_numbers, lines)],
    )


def _names(key: str, value: Iterable[str]) -> tuple[str, ...]:
    """Return names that are given as a list.

    Raises:
        ConfigError: If one string is given, of which each letter would be looked for.
    """
    if isinstance(value, str):
        raise ConfigError(f"{key}={value}: expected a list of names, such as [{value!r}]")
    return tuple(value)


@contextmanager
def _called() -> Iterator[Callable[[bool], Console]]:
    """Let commands run for a caller: interrupts are the caller's, and Flower's log stays short.

    Yields:
        Makes a console, from whether it shows anything.
    """
    use_app()
    from rich.console import Console

    from experiments.ending import caller

    flower = logging.getLogger("flwr")
    with caller():
        import flwr.supercore  # noqa: F401  (it sets the level of its log when it is imported)

        level = flower.level
        flower.setLevel(logging.ERROR)
        try:
            yield lambda progress: Console(quiet=not progress)
        finally:
            flower.setLevel(level)
