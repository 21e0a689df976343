"""Submit runs to a deployment's SuperLink, and read their logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.deploy import DeployError
from experiments.deploy.check import Show
from experiments.deploy.folder import Deployment
from experiments.deploy.superlink import greet
from experiments.ending import NotAsConfiguredError, RunFailedError
from experiments.engines.deployment import flwr_command, list_runs, run_deployed, to_toml
from experiments.running import still_running
from snnfl.config import Config, counted
from snnfl.files import make_private
from snnfl.plugins import resolve
from snnfl.protocol import FAILED, NOT_AS_CONFIGURED

CONNECTION = "deployment"
"""What the connection is called in this deployment's own Flower configuration."""


def run_on(
    deployment: Deployment, config: Path, overrides: Sequence[str], show: Show, plugins: Sequence[str] = ()
) -> Config:
    """Submit a run and follow its log to its end.

    Args:
        deployment: Where.
        config: YAML file.
        overrides: ``key=value`` each.
        show: Told each line.
        plugins: Files that travel with the app.

    Returns:
        The run's configuration.

    Raises:
        ConfigError: If it is invalid.
        DeployError: If the run isn't for as many clients as there are nodes, or the SuperLink cannot be reached.
        DeploymentError: If it doesn't complete.
    """
    options = [*overrides, "engine.name=deployment", f"engine.connection={CONNECTION}"]
    resolved = resolve(config, options, plugins)
    clients, nodes = resolved.data.clients, len(deployment.nodes)
    if clients != nodes:
        raise DeployError(
            f"data.clients={clients}, but this deployment has {counted(nodes, 'node')}; say data.clients={nodes}"
        )
    greet(deployment)
    run_deployed(resolved, show, flower_home(deployment), stops=False)  # `snnfl deploy logs` finds it again
    return resolved


def still_running_on(deployment: Deployment, said: Sequence[str]) -> str:
    """Say that a run goes on when its operator doesn't follow it any more.

    Args:
        deployment: Where.
        said: The lines of its log so far.
    """
    stop = f"FLWR_HOME={deployment.path / 'flwr'} flwr stop {{run}} {CONNECTION}"
    return still_running(said, f"snnfl deploy logs {deployment.path}", stop)


def check_log(said: Sequence[str]) -> None:
    """Look what the log of a finished run says of how it ended; its folder is on another machine.

    Raises:
        RunFailedError: If no client sent anything valid.
        NotAsConfiguredError: If it isn't what was configured.
    """
    failed, lacking = (
        [line.partition(f"{mark}: ")[2] for line in said if f"{mark}: " in line] for mark in (FAILED, NOT_AS_CONFIGURED)
    )
    if failed:
        raise RunFailedError(*failed)
    if lacking:
        raise NotAsConfiguredError(lacking)


def show_logs(deployment: Deployment, run_id: str | None, show: Show) -> None:
    """Show the log of a run, and follow it while it lasts.

    Args:
        deployment: Where.
        run_id: Flower's number of the run; ``None`` for the latest.
        show: Told each line.

    Raises:
        DeployError: If the SuperLink cannot be reached, or has had no such run.
        DeploymentError: If it fails under way.
    """
    greet(deployment)
    home = flower_home(deployment)
    runs = sorted(list_runs([CONNECTION], home), key=lambda run: str(run["pending-at"]))
    if not runs:
        raise DeployError(f"{deployment.control} has had no run; submit one: snnfl deploy run {deployment.path}")
    known = [str(run["run-id"]) for run in runs]
    if run_id is None:
        run_id = known[-1]
    elif run_id not in known:
        raise DeployError(f"{run_id}: {deployment.control} has had no run of this number; the latest is {known[-1]}")
    flwr_command(["log", run_id, CONNECTION, "--stream"], show, home, deployment.control)


def flower_home(deployment: Deployment) -> Path:
    """Describe the connection in a Flower configuration of this deployment's own; return its folder."""
    home, trusted = deployment.path / "flwr", deployment.ca_certificate.absolute()
    lines = {"address": deployment.control, "root-certificates": str(trusted)}
    text = f"[superlink]\n\n[superlink.{CONNECTION}]\n{to_toml(lines)}"
    try:
        make_private(home)
        (home / "config.toml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{home}: cannot be written ({error.strerror})") from None
    return home
