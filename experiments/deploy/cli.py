"""The commands ``snnfl deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

deploy_app = typer.Typer(
    help="Run on machines of your own: certificates, node keys, checks and runs (docs/deployment.md).",
    no_args_is_help=True,
    rich_markup_mode=None,
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
    """Make a deployment's certificates, node keys, list of nodes and .env.

    \b
    snnfl deploy init fleet --server fl.example.org --nodes 3
    snnfl deploy init fleet --server fl.example.org --nodes 5 --renew
    """  # noqa: D301  (\b keeps typer from joining the lines)
    from experiments.deploy.init import init_deployment

    made = init_deployment(folder, server, nodes, renew=renew)
    typer.echo(f"{folder}: certificates of {made.address} and keys of {nodes} nodes")
    typer.echo(f"keep {folder}/certificates/ca.key to yourself; what goes where: docs/deployment.md")
