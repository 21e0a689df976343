"""The commands ``snnfl deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.arguments import ConfigArgument, OverridesArgument
from snnfl.config import counted

deploy_app = typer.Typer(
    help="Run on machines of your own: certificates, node keys, checks and runs (docs/deployment.md).",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,
)

FolderArgument = Annotated[Path, typer.Argument(help="folder of the deployment", metavar="DIRECTORY")]


@deploy_app.command()
def init(
    folder: FolderArgument,
    server: Annotated[str, typer.Option(help="SuperLink as every machine reaches it", metavar="HOST[:PORT]")],
    nodes: Annotated[int, typer.Option(min=1, help="number of SuperNodes, each with one partition")],
    renew: Annotated[
        bool, typer.Option("--renew", help="keep authority and keys, issue a new server certificate and missing keys")
    ] = False,
) -> None:
    """Make a deployment's certificates, node keys, list of nodes, .env and, for several machines, its guard.

    \b
    snnfl deploy init fleet --server fl.example.org --nodes 3
    snnfl deploy init fleet --server fl.example.org --nodes 5 --renew
    """  # noqa: D301  (\b keeps typer from joining the lines)
    from experiments.deploy.init import init_deployment

    made = init_deployment(folder, server, nodes, renew=renew)
    typer.echo(f"{folder}: certificates of {made.address} and keys of {counted(nodes, 'node')}")
    if made.guarded:
        typer.echo(f"the SuperLink listens on {made.control}; nginx with {folder}/guard.conf lets nodes alone to it")
    typer.echo(f"each node gets {folder}/identities, by which they know each other in secure aggregation")
    typer.echo(f"keep {folder}/certificates/ca.key to yourself; what goes where: docs/deployment.md")


@deploy_app.command()
def register(folder: FolderArgument) -> None:
    """Let the nodes in whose keys the SuperLink doesn't know yet; again after its database was lost."""
    from experiments.deploy.check import register_nodes
    from experiments.deploy.folder import read_deployment

    register_nodes(read_deployment(folder), typer.echo)


@deploy_app.command()
def check(folder: FolderArgument) -> None:
    """Reach the SuperLink; look at its certificate, clock and version, and at each node."""
    from experiments.deploy.check import check_deployment
    from experiments.deploy.folder import read_deployment

    check_deployment(read_deployment(folder), typer.echo)


@deploy_app.command()
def run(
    folder: FolderArgument,
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a run after its last complete round")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option("--plugin", help="your own Python file; it travels with the app", metavar="FILE"),
    ] = None,
) -> None:
    """Submit a run and follow its log. Results go to run.directory on the SuperLink's machine.

    Ctrl-C ends the log, not the run.

    \b
    snnfl deploy run fleet experiments/conf/demo.yaml data.clients=3
    snnfl deploy run fleet experiments/conf/demo.yaml data.clients=3 --resume
    """  # noqa: D301
    from experiments.deploy.folder import read_deployment
    from experiments.deploy.run import check_log, run_on, still_running_on
    from experiments.ending import keeping

    deployment, said = read_deployment(folder), list[str]()

    def show(line: str) -> None:
        said.append(line)
        typer.echo(line)

    with keeping(lambda: still_running_on(deployment, said)):
        options = [*(overrides or []), *(["run.resume=true"] if resume else [])]
        done = run_on(deployment, config, options, show, plugin or ())
    typer.echo(f"results: {Path(done.run.directory) / done.run.name}/ on {deployment.host}")
    check_log(said)


@deploy_app.command()
def logs(
    folder: FolderArgument,
    run_id: Annotated[str | None, typer.Argument(help="Flower's number of the run; default: the latest")] = None,
) -> None:
    """Show the log of a run on the SuperLink, and follow it while it lasts."""
    from experiments.deploy.folder import read_deployment
    from experiments.deploy.run import show_logs

    show_logs(read_deployment(folder), run_id, typer.echo)
