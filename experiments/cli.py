"""The command ``snnfl``."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from experiments.deploy import DeployError
from experiments.deploy.cli import deploy_app
from snnfl.config import Config, ConfigError, StrategyConfig, compose, to_yaml
from snnfl.conversion import ConversionError

app = typer.Typer(
    help="Federated learning with spiking neural networks, and attacks on its privacy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Download data sets and look at partitions.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")

STRATEGIES = f"strategy.name is {StrategyConfig.__dataclass_fields__['name'].metadata['doc']}."

CONFIGURATIONS = Path(__file__).parent / "conf"

ConfigArgument = Annotated[
    Path, typer.Argument(help="YAML file, such as experiments/conf/demo.yaml", metavar="CONFIG.yaml")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="options that replace the file's, such as data.clients=5", metavar="KEY=VALUE..."),
]


@app.command(epilog=STRATEGIES)
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the resolved options and stop")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show Flower's own log")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue a run that was killed, or one of fewer rounds")
    ] = False,
) -> None:
    """Run one federation, in this process or where engine.name says; results go to runs/NAME/.

    \b
    snnfl run experiments/conf/demo.yaml data.clients=5 run.name=five
    snnfl run experiments/conf/demo.yaml engine.name=ray engine.cpus_per_client=2
    snnfl run experiments/conf/demo.yaml --print-config
    snnfl run experiments/conf/demo.yaml data.clients=5 run.name=five --resume
    """  # noqa: D301  (\b keeps typer from joining the lines)
    resolved = compose(config, [*(overrides or []), *(["run.resume=true"] if resume else [])])
    if print_config:
        typer.echo(to_yaml(resolved), nl=False)
        return
    console = _console(verbose)
    rows = run_and_show(resolved, console, verbose=verbose)
    from experiments.progress import results_table

    console.print(results_table([(resolved, rows)]))
    console.print(f"results: {Path(resolved.run.directory) / resolved.run.name}/", highlight=False)


@app.command()
def demo(overrides: OverridesArgument = None) -> None:
    """Run S-FedAvg beside FedAvg on real digits; results go to runs/demo/ and runs/demo_fedavg/."""
    from experiments.progress import algorithm, results_table
    from strategies.figures import plot_accuracy

    spiking = compose(CONFIGURATIONS / "demo.yaml", overrides or [])
    name = spiking.run.name
    plain = compose(
        CONFIGURATIONS / "demo.yaml", [*(overrides or []), "strategy.spiking=false", f"run.name={name}_fedavg"]
    )
    console = _console(verbose=False)
    console.print(
        f"{spiking.data.clients} Flower clients train on {spiking.data.source}; in the first run they convert their "
        "networks to spiking ones before upload.",
        highlight=False,
    )
    results = [(config, run_and_show(config, console)) for config in (spiking, plain)]
    console.print(results_table(results))
    folder = Path(spiking.run.directory) / name
    plot_accuracy({algorithm(c): rows for c, rows in results}, [folder / "comparison.png", folder / "comparison.svg"])
    console.print(f"results: {folder}/ (S-FedAvg, comparison.png) and {folder}_fedavg/", highlight=False)


@app.command()
def audit(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs with audit.record=true", metavar="RUN_DIR...")],
    attack: Annotated[
        list[str] | None, typer.Option(help="attack by name, repeated for several; default: all that apply")
    ] = None,
    rounds: Annotated[list[int] | None, typer.Option("--round", help="round to attack; default: all recorded")] = None,
    client: Annotated[list[int] | None, typer.Option(help="partition to attack; default: all recorded")] = None,
    deny: Annotated[
        list[str] | None, typer.Option(help="fact that the attacker lacks, such as norm_statistics", metavar="FACT")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="give the private labels: a diagnosis")] = False,
    iterations: Annotated[int, typer.Option(min=1, help="per start")] = 300,
    restarts: Annotated[int, typer.Option(min=1, help="random starts per victim")] = 1,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="let torch.compile make long attacks up to twice as fast; needs a C++ compiler"),
    ] = False,
    controls: Annotated[
        bool, typer.Option(help="attack clients' plain twins and plain updates with noise too, for scale")
    ] = True,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="Python file that registers attacks (docs/audit.md)", metavar="FILE")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the report; default: audit/ of the first run")] = None,
) -> None:
    """Attack what the server of a run has seen; write report.html, scorecard.json and scorecard.csv.

    \b
    snnfl run experiments/conf/demo.yaml audit.record=true audit.ground_truth=true
    snnfl audit runs/demo
    snnfl audit runs/s_fedavg runs/fedavg --iterations 1000        # an S-run beside its plain control
    snnfl audit runs/demo --attack reconverted_train --deny norm_statistics
    """  # noqa: D301
    from experiments.audit.command import audit_runs
    from experiments.audit.plugins import load_plugin
    from snnfl.attacks import Budget
    from snnfl.audit.victims import scope_of

    compiler = os.environ.get("CXX", "g++")
    if compiled and shutil.which(compiler) is None:
        raise ConfigError(f"--compile: {compiler} isn't here; install a C++ compiler or name it in CXX")
    for path in plugin or ():
        load_plugin(path)
    scope = scope_of(rounds=rounds or (), partitions=client or (), labels=labels, denied=deny or ())
    budget = Budget(iterations=iterations, restarts=restarts, compiled=compiled)
    audit_runs(runs, attack or (), scope, budget, controls=controls, output=output, console=_console(verbose=False))


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="YAML file of a study (docs/compare.md)", metavar="STUDY.yaml")],
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells and what they will cost, and stop")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="cells at a time; default: one per core, or per GPU")] = None,
) -> None:
    """Run every cell of a study that isn't finished; write its tables, figures and report to runs/STUDY/.

    \b
    snnfl compare experiments/snfl/table1_iid/laptop.yaml --dry-run
    snnfl compare experiments/snfl/table1_iid/laptop.yaml --jobs 2
    """  # noqa: D301
    from experiments.compare.command import compare as run_study

    run_study(study, overrides or [], dry_run=dry_run, jobs=jobs, console=_console(verbose=False))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run's folder, or a file of a spiking network", metavar="RUN")],
    kind: Annotated[Literal["nir"], typer.Option("--format", help="format of the file")] = "nir",
    output: Annotated[Path | None, typer.Option(help="file to write; default: beside the network's")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="shape of an image, such as 1,28,28; default: that of the run's data")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="length of the simulation, for a drip depends on it; default: the run's"),
    ] = None,
) -> None:
    """Write a run's spiking network for other tools: snnfl export runs/demo --format nir."""
    from snnfl.spiking import SpikingNetwork
    from snnfl.spiking.export_nir import to_nir
    from strategies.run_directory import CONFIG_FILE, SNN_FILE

    path = run / SNN_FILE if run.is_dir() else run
    if run.is_dir() and not path.exists():
        raise ConfigError(f"{run}: no {SNN_FILE}; only a finished run with strategy.spiking=true leaves one")
    network = SpikingNetwork.load(path)
    target = output or path.with_suffix(f".{kind}")
    shape = _image_shape(path.parent, input_shape)
    if steps is None and (path.parent / CONFIG_FILE).exists():
        steps = compose(path.parent / CONFIG_FILE).conversion.steps
    try:
        to_nir(network, shape, target, steps=steps)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from None
    typer.echo(f"{target}: {len(network.graph.spikes)} spiking layers, images of shape {','.join(map(str, shape))}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist, cifar10 or cifar100")],
    root: Annotated[str | None, typer.Option(help="folder; default: SNNFL_DATA, else ~/.cache/snnfl")] = None,
) -> None:
    """Download a data set, if it isn't there."""
    from snnfl import data

    typer.echo(f"{name}: {data.fetch(name, data.data_root(root))}")


@data_app.command()
def plot(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    output: Annotated[Path, typer.Option(help="picture to write; the suffix decides the format")] = Path(
        "partition.png"
    ),
) -> None:
    """Draw which client holds how many images of which label."""
    from experiments.partition_plot import plot_partition
    from snnfl.data import label_counts
    from snnfl.workspace import Workspace

    resolved = compose(config, overrides or [])
    work = Workspace(resolved)
    counts = label_counts(work.dataset.train_labels, work.partitions, work.dataset.classes)
    title = f"{resolved.data.source}, {resolved.data.partition}, {resolved.data.clients} clients"
    try:
        plot_partition(counts, work.dataset.class_names, title, output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror})") from None
    typer.echo(
        f"{output}: {resolved.data.clients} clients, {int(counts.sum(1).min())} to {int(counts.sum(1).max())} images"
    )


def run_and_show(config: Config, console: Console, *, verbose: bool = False) -> list[dict[str, Any]]:
    """Run a federation on the engine that its configuration names; return all rows of its ``metrics.jsonl``.

    A SuperLink's log is printed as it comes; the other engines show a bar per round.
    """
    deployed = config.engine.name == "deployment"
    rows = _run_deployed(config, console) if deployed else _run_here(config, console, verbose)
    if not any(row["replies"] for row in rows):
        raise RunFailedError("no client sent a valid update in any round; the reasons stand in the log above")
    return rows


def _run_here(config: Config, console: Console, verbose: bool) -> list[dict[str, Any]]:
    from clients.client_app import app as client_app
    from experiments.progress import RoundProgress, WatchedClientApp
    from snnfl.config import flatten
    from strategies.run_directory import node_folders, read_metrics, run_path
    from strategies.server_app import server_app

    engine, run_config, clients, path = config.engine, flatten(config), config.data.clients, run_path(config)
    node_config = node_folders(path)
    with RoundProgress(config, console) as progress:
        app = server_app(progress.round_done)
        if engine.name == "ray":
            from experiments.engines.ray import run_on_ray  # importing Ray takes a second

            run_on_ray(
                app,
                client_app,
                run_config=run_config,
                clients=clients,
                node_config=node_config,
                num_cpus_per_client=engine.cpus_per_client,
                num_gpus_per_client=engine.gpus_per_client,
                backend_config={"init_args": {"address": engine.address}} if engine.address else None,
                verbose=verbose,
            )
        else:
            from experiments.engines.in_process import run_in_process

            watched = WatchedClientApp(client_app, progress)
            run_in_process(app, watched, run_config=run_config, clients=clients, node_config=node_config)
    return read_metrics(path)


def _run_deployed(config: Config, console: Console) -> list[dict[str, Any]]:
    from experiments.engines.deployment import run_deployed, with_absolute_paths
    from strategies.run_directory import METRICS_FILE, read_metrics

    path = Path(config.run.directory).expanduser() / config.run.name
    start = time.time()
    run_deployed(with_absolute_paths(config), partial(console.print, markup=False, highlight=False, soft_wrap=True))
    untouched = not (path / METRICS_FILE).exists() or (path / METRICS_FILE).stat().st_mtime < start
    if untouched and not config.run.resume:  # a run that was complete has nothing to write
        raise RunFailedError(f"the run completed, but left nothing in {path}; look on the machine of its ServerApp")
    return read_metrics(path)


class RunFailedError(RuntimeError):
    """A run that ended without training anything."""


def _image_shape(folder: Path, given: str | None) -> tuple[int, ...]:
    """Read the shape of an image from the command line, else take that of the data set of the run in a folder."""
    from snnfl import data
    from strategies.run_directory import CONFIG_FILE

    if given is not None:
        sizes = given.split(",")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ConfigError(f"--input-shape={given}: expected whole numbers, such as 1,28,28")
        return tuple(map(int, sizes))
    if not (folder / CONFIG_FILE).exists():
        raise ConfigError(f"{folder} holds no run's {CONFIG_FILE}; say the shape of an image: --input-shape 1,28,28")
    return data.load(compose(folder / CONFIG_FILE).data).input_shape


def main() -> None:
    """Run the command; a user's mistake is one line on the standard error and exit status 2."""
    from experiments.engines import EngineError
    from snnfl.audit.recording import RecordingError
    from snnfl.spiking.export import ExportError
    from snnfl.spiking.storage import NetworkFileError
    from snnfl.threat import ThreatModelError
    from strategies.cohort import CohortError

    try:
        app()
    except (
        ConfigError,
        ConversionError,
        CohortError,
        DeployError,
        ExportError,
        NetworkFileError,
        RecordingError,
        ThreatModelError,
    ) as error:
        _fail(str(error), 2)
    except (EngineError, RunFailedError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        sys.stderr.write(
            "snnfl: interrupted; snnfl run with --resume, or snnfl compare as before, goes on after the last complete "
            "round\n"
        )
        sys.stderr.flush()
        os._exit(130)  # an exit in good order would wait for Flower's threads, which wait for their Ray clients


def _fail(line: str, status: int) -> None:
    sys.stderr.write(f"snnfl: {line}\n")
    sys.exit(status)


class _ConsoleHandler(logging.Handler):
    """Print log messages above the progress bar, each in a line of its own."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as it is."""
        style = "yellow" if record.levelno >= logging.WARNING else None
        self.console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


def _console(verbose: bool) -> Console:
    """Return the console and send warnings (with ``verbose``, Flower's log too) through it, above the progress bar."""
    console = Console()
    logging.basicConfig(level=logging.WARNING, handlers=[_ConsoleHandler(console)], format="%(message)s", force=True)
    logging.getLogger("strategies").setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.INFO if verbose else logging.ERROR)
    return console
