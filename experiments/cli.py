"""The command ``snnfl``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
import typer.core

import snnfl
from experiments.arguments import ConfigArgument, OverridesArgument, PluginOption
from experiments.deploy.cli import deploy_app
from experiments.ending import ending, keeping
from experiments.export import export
from experiments.privatesnn.cli import privatesnn_app
from experiments.running import (
    check_results,
    console_of,
    may_replace_a_demo,
    run_and_show,
    show_list,
)
from snnfl.config import OWN, ConfigError, StrategyConfig, counted, to_yaml
from snnfl.launch import importing
from snnfl.plugins import load_installed, load_listed, resolve, used

STATUSES = (
    "Exit status: 0 finished as configured; 1 failed; 2 a mistake in what was asked; 3 finished, but not as "
    "configured: the last round kept old weights, a client gave no valid reply, or a detector or tracker failed in "
    "every round; 130 interrupted; 143 told to terminate."
)

app = typer.Typer(
    help="Federated learning with spiking neural networks, and attacks on its privacy.",
    epilog=STATUSES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    suggest_commands=False,  # click does
)
data_app = typer.Typer(
    help="Download data sets and look at partitions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,
)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
app.add_typer(privatesnn_app, name="privatesnn")

STRATEGIES = f"strategy.name is {StrategyConfig.__dataclass_fields__['name'].metadata['doc']}."

CONFIGURATIONS = Path(__file__).parent / "conf"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"snnfl {snnfl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and stop")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


@app.command(epilog=STRATEGIES)
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the resolved options and stop")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show Flower's own log")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue a run that was killed, or one of fewer rounds")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Run one federation, in this process or where engine.name says; results go to runs/NAME/.

    \b
    snnfl run experiments/conf/demo.yaml data.clients=5 run.name=five
    snnfl run experiments/conf/demo.yaml engine.name=ray engine.cpus_per_client=2 run.name=ray
    snnfl run experiments/conf/demo.yaml --print-config
    snnfl run experiments/conf/demo.yaml data.clients=5 run.name=five --resume
    snnfl run mine.yaml --plugin my_model.py model.name=mine
    """  # noqa: D301  (\b keeps typer from joining the lines)
    resolved = resolve(config, [*(overrides or []), *(["run.resume=true"] if resume else [])], plugin or ())
    if print_config:
        if files := [each.path or each.name for each in used(resolved) if not each.installed]:
            typer.echo(f"plugins: {json.dumps(files)}")
        typer.echo(to_yaml(resolved), nl=False)
        return
    console = console_of(verbose)
    rows = run_and_show(resolved, console, verbose=verbose)
    from experiments.progress import results_table

    console.print(results_table([(resolved, rows)]))
    console.print(f"results: {Path(resolved.run.directory) / resolved.run.name}/", highlight=False)
    check_results({"": (resolved, rows)})


@app.command()
def demo(overrides: OverridesArgument = None, plugin: PluginOption = None) -> None:
    """Run S-FedAvg beside FedAvg on real digits; results go to runs/demo/ and runs/demo_fedavg/.

    It replaces what an earlier demo left there, and nothing else.
    """
    from experiments.progress import algorithm, results_table
    from strategies.figures import plot_accuracy

    options, file = overrides or [], CONFIGURATIONS / "demo.yaml"
    spiking = resolve(file, options, plugin or ())
    name = spiking.run.name
    plain = resolve(file, [*options, "strategy.spiking=false", f"run.name={name}_fedavg"], plugin or ())
    configs = [may_replace_a_demo(config) for config in (spiking, plain)]
    console = console_of(verbose=False)
    console.print(
        f"{spiking.data.clients} Flower clients train on {spiking.data.source}; in the first run they convert their "
        "networks to spiking ones before upload.",
        highlight=False,
    )
    folder = Path(spiking.run.directory) / name
    kept = f"{folder} and {folder}_fedavg keep the rounds so far; the same command begins anew"
    results = [(config, run_and_show(config, console, kept=lambda: kept)) for config in configs]
    console.print(results_table(results))
    plot_accuracy({algorithm(c): rows for c, rows in results}, [folder / "comparison.png", folder / "comparison.svg"])
    console.print(f"results: {folder}/ (S-FedAvg, comparison.png) and {folder}_fedavg/", highlight=False)
    check_results({config.run.name: (config, rows) for config, rows in results})


@app.command()
def audit(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="folders of runs with audit.record=true", metavar="RUN_DIR...")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="attack by name, repeated for several; default: all that apply")
    ] = None,
    rounds: Annotated[list[int] | None, typer.Option("--round", help="round to attack; default: all recorded")] = None,
    client: Annotated[list[int] | None, typer.Option(help="partition to attack; default: all recorded")] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option(help="fact that the attacker lacks, such as norm_statistics; --list shows all", metavar="FACT"),
    ] = None,
    colluding: Annotated[
        int,
        typer.Option(min=0, help="with secure aggregation: clients of each round that tell the server their updates"),
    ] = 0,
    differences: Annotated[
        bool,
        typer.Option(
            "--differences",
            help="with secure aggregation: tell clients apart by the sums of rounds with others in them",
        ),
    ] = False,
    labels: Annotated[bool, typer.Option("--labels", help="give the private labels: a diagnosis")] = False,
    iterations: Annotated[int, typer.Option(min=1, help="per start")] = 300,
    restarts: Annotated[int, typer.Option(min=1, help="random starts per victim")] = 1,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="compile attacks: very long ones are faster; needs a C++ compiler; default: where it pays",
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="attack clients' plain twins and plain updates with noise too, for scale")
    ] = True,
    side_channel: Annotated[
        bool,
        typer.Option("--side-channel", help="ask thresholds of S-updates for members: side_channel.csv, in minutes"),
    ] = False,
    plugin: PluginOption = None,
    output: Annotated[Path | None, typer.Option(help="folder of the report; default: audit/ of the first run")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="of another Flower app: what its clients train", metavar="MODULE:FACTORY"),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="cross_entropy, if clients minimise it")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of local training")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images per step")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over a client's images")] = None,
    momentum: Annotated[float | None, typer.Option(min=0, help="of SGD")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="of SGD")] = None,
    optimizer: Annotated[str | None, typer.Option(help="its name; attacks repeat sgd alone")] = None,
    data: Annotated[
        str | None, typer.Option(help="public images for the floors: a data set, or MODULE:LOADER", metavar="DATA")
    ] = None,
    input_shape: Annotated[str | None, typer.Option(help="of an image, if not that of --data", metavar="C,H,W")] = None,
    mean: Annotated[str | None, typer.Option(help="of the pixels' normalisation, with commas")] = None,
    std: Annotated[str | None, typer.Option(help="of the pixels' normalisation, with commas")] = None,
    generative_model: Annotated[
        str | None,
        typer.Option(
            help="draws images of the same kind, for the attack `generative`: a torch.nn.Module with latent_shape",
            metavar="MODULE:FACTORY",
        ),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="folder of what nodes tell of their images, for scores")] = None,
    list_attacks: Annotated[bool, typer.Option("--list", help="list the attacks, and attack nothing")] = False,
) -> None:
    """Attack what the server of a run has seen; write report.html, scorecard.json and scorecard.csv.

    \b
    snnfl run experiments/conf/demo.yaml run.name=watched audit.record=true audit.ground_truth=true
    snnfl audit runs/watched
    snnfl audit runs/s_fedavg runs/fedavg --iterations 1000        # an S-run beside its plain control
    snnfl audit runs/watched --attack reconverted_train --deny norm_statistics
    snnfl audit runs/masked --colluding 4                          # of a run with secure aggregation
    snnfl audit runs/masked --differences                          # not everybody took part in each of its rounds
    snnfl audit --list

    With --model, RUN_DIR is the recording of another Flower app (docs/how-to/audit-your-flower-app.md). What isn't said
    of its training, the attacker doesn't know:

    \b
    snnfl audit recorded --model task:Net --loss cross_entropy --learning-rate 0.01 --batch-size 32 --epochs 1 \\
        --input-shape 3,32,32 --mean 0.5 --std 0.5
    """  # noqa: D301
    with importing():
        from experiments.audit.app import app_of_options, audit_app, generative_model_of
        from experiments.audit.choice import show_attacks
        from experiments.audit.command import audit_runs, check_attacks
        from snnfl.attacks import Budget
        from snnfl.auditing.victims import scope_of

    compiler = os.environ.get("CXX", "g++")
    if compiled and shutil.which(compiler) is None:
        raise ConfigError(f"--compile: {compiler} isn't here; install a C++ compiler or name it in CXX")
    load_installed()
    load_listed(plugin or [], None)
    if list_attacks:
        show_attacks(console_of(verbose=False))
        return
    if not runs:
        raise ConfigError("RUN_DIR: give the folder of a run, or --list for the attacks")
    if options := [str(each) for each in runs if "=" in each.name and not each.exists()]:
        raise ConfigError(
            f"{options[0]}: an audit takes folders of runs, whose options stand; it has options such as --attack"
        )
    scope = scope_of(
        rounds=rounds or (), partitions=client or (), labels=labels, denied=deny or (), colluding=colluding,
        generative_model=generative_model_of(generative_model), differences=differences,
    )  # fmt: skip
    budget = Budget(iterations=iterations, restarts=restarts, compiled=compiled)
    console = console_of(verbose=False)
    said = {
        "loss": loss, "optimizer": optimizer, "learning_rate": learning_rate, "batch_size": batch_size,
        "epochs": epochs, "momentum": momentum, "weight_decay": weight_decay, "data": data,
        "input_shape": input_shape, "mean": mean, "std": std, "truth": truth,
    }  # fmt: skip
    other = app_of_options(model, {name: value for name, value in said.items() if value is not None})
    with keeping(lambda: "no report is written; what was recorded is as it was, and the same command begins anew"):
        if other is not None:
            _, audits = audit_app(
                runs, other, attack or (), scope, budget, side_channel=side_channel, output=output, console=console
            )
        else:
            _, audits = audit_runs(
                runs,
                attack or (),
                scope,
                budget,
                controls=controls,
                side_channel=side_channel,
                output=output,
                console=console,
            )
    check_attacks(audits)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="YAML file of a study (docs/compare.md)", metavar="STUDY.yaml")],
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells and what they will cost, and stop")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="cells at a time; default: one per core, or per GPU")] = None,
    plugin: PluginOption = None,
) -> None:
    """Run every cell of a study that isn't finished; write its tables, figures and report to runs/STUDY/.

    \b
    snnfl compare experiments/snfl/table1_iid/laptop.yaml --dry-run
    snnfl compare experiments/snfl/table1_iid/laptop.yaml --jobs 2
    """  # noqa: D301
    from experiments.compare.command import check_compared, plan
    from experiments.compare.command import compare as run_study

    console = console_of(verbose=False)
    if dry_run:
        plan(study, overrides or [], plugin or (), jobs=jobs, console=console)
    else:
        check_compared(run_study(study, overrides or [], plugin or (), jobs=jobs, console=console))


@app.command()
def membership(
    study: Annotated[
        Path | None, typer.Argument(help="YAML file of a study (docs/membership.md)", metavar="STUDY.yaml")
    ] = None,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the networks and what they will cost, and stop")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; default: one per core")] = None,
    plugin: PluginOption = None,
    list_attacks: Annotated[bool, typer.Option("--list", help="list the attacks, and train nothing")] = False,
) -> None:
    """Train networks on random halves of a data set and ask attacks who was in; results go to runs/STUDY/.

    \b
    snnfl membership experiments/membership/table3_surrogates/laptop.yaml --dry-run
    snnfl membership experiments/membership/table3_surrogates/laptop.yaml
    snnfl membership --list

    Each network in turn is the target, and the others are its shadows. What is finished is kept: the same command goes
    on after an interrupt, and other attacks use the networks that are there. The same suite asks networks of your own:
    snnfl.membership() in docs/membership.md.
    """  # noqa: D301
    from experiments.membership.command import attacks_table, plan, study_members

    load_installed()
    load_listed(plugin or [], None)
    console = console_of(verbose=False)
    if list_attacks:
        show_list(console, attacks_table())
        return
    if study is None:
        raise ConfigError("STUDY.yaml: give the file of a study, or --list for the attacks")
    if dry_run:
        plan(study, overrides or [], plugin or (), jobs=jobs, console=console)
    else:
        study_members(study, overrides or [], plugin or (), jobs=jobs, console=console)


app.command()(export)


@data_app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="mnist, fashion_mnist, cifar10 or cifar100; of others it says what to do")
    ],
    root: Annotated[str | None, typer.Option(help="folder; default: SNNFL_DATA, else ~/.cache/snnfl")] = None,
    plugin: PluginOption = None,
) -> None:
    """Download a data set, if it isn't there."""
    from snnfl import data

    load_installed()
    load_listed(plugin or [], None)
    typer.echo(f"{name}: {data.fetch(name, data.data_root(root))}")


@data_app.command()
def plot(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    output: Annotated[Path, typer.Option(help="picture to write; the suffix decides the format")] = Path(
        "partition.png"
    ),
    plugin: PluginOption = None,
) -> None:
    """Draw which client holds how many samples of which label."""
    from experiments.partition_plot import plot_partition
    from snnfl.workspace import Workspace

    resolved = resolve(config, overrides or [], plugin or ())
    work = Workspace(resolved)
    counts, data = work.label_counts(), resolved.data
    parts = [data.source, *([] if data.source == OWN else [data.partition]), counted(data.clients, "client")]
    title = ", ".join(parts)
    try:
        plot_partition(counts, work.dataset.class_names, title, output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror})") from None
    fewest, most = int(counts.sum(1).min()), int(counts.sum(1).max())
    typer.echo(f"{output}: {counted(resolved.data.clients, 'client')}, {fewest} to {counted(most, 'sample')}")


def main() -> None:
    """Run the command; what a user can do something about is one line on the standard error and an exit status."""
    # Typer 0.20 escapes the brackets of [required] for rich, although rich_markup_mode=None has nothing unescape them.
    typer.core.HAS_RICH = False
    with ending("snnfl"):
        app(prog_name="snnfl")
