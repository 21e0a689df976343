"""The command ``flower-simulation``: run any Flower app on Flower's simulation runtime, without a SuperLink.

Flower had this command until 1.25 and dropped it in favour of ``flwr run``. It is kept here with its flags, but for
those that have lost their meaning: ``--enable-tf-gpu-growth`` and ``--delay-start`` served TensorFlow, which plays no
role here, ``--run-id`` a SuperLink, ``--app-dir`` is ``--app`` or the current folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict, get_project_config, parse_config_args
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from experiments.ending import ending, interruptible, keeping
from snnfl.config import Config, FlatValue, flatten, nearest, unflatten
from snnfl.launch import use_app
from snnfl.plugins import loaded, resolve, used

EXAMPLES = """\
examples:
  flower-simulation --app . --num-supernodes 10 --run-config 'run.rounds=3 data.source="digits"'
  flower-simulation --server-app my.server:app --client-app my.client:app --num-supernodes 4 \\
      --backend-config '{"client_resources": {"num_cpus": 2, "num_gpus": 0.25}, "init_args": {"num_cpus": 8}}'
"""


AnyApp = TypeVar("AnyApp", ServerApp, ClientApp)


class UsageError(Exception):
    """A mistake on the command line, in one line."""


@dataclass(frozen=True, kw_only=True)
class FlowerApp:
    """A ServerApp, its ClientApp, and the run config that they declare (``None``: they declare none)."""

    server: ServerApp
    client: ClientApp
    defaults: Mapping[str, FlatValue] | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what a user can do something about is one line on the standard error and an exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    with ending(parser.prog, files=False):  # where a foreign app finds no file, a traceback says
        from experiments.engines.ray import RayError  # importing Ray takes longer than showing the help

        try:
            _run(options, parser.prog)
        except (UsageError, RayError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")


def _run(options: argparse.Namespace, program: str) -> None:
    from experiments.engines.ray import run_on_ray

    backend_config = _backend_config(options.backend_config)
    app = _load(options)  # first, for a plug-in imports packages of the app
    resolve(plugins=options.plugin)
    run_config = _run_config(app.defaults, options.run_config, options.num_supernodes)
    config = _own_config(run_config)
    with interruptible(lambda: "", program) if config is None else keeping(lambda: _kept(config), program):
        run_on_ray(
            app.server,
            app.client,
            run_config=run_config,
            clients=options.num_supernodes,
            backend_config=backend_config,
            verbose=options.verbose,
            node_config=_node_config(config),
            plugins=loaded() if config is None else used(config),
        )
    if config is not None:
        _check_results(config)


def _own_config(run_config: Mapping[str, FlatValue]) -> Config | None:
    """Return the configuration of a run of our own app, which writes a run's folder; ``None`` for another app."""
    return unflatten(run_config) if run_config.keys() == flatten(Config()).keys() else None


def _kept(config: Config) -> str:
    from strategies.resume import what_is_kept

    return what_is_kept(config, "the same command with --run-config run.resume=true goes on")


def _check_results(config: Config) -> None:
    from experiments.running import check_results
    from strategies.run_directory import read_metrics, run_path

    check_results({"": (config, read_metrics(run_path(config)))})


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} -h)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="flower-simulation",
        description="Run a Flower app on this machine, its clients in Ray workers, several at a time.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--app",
        metavar="DIR",
        help="folder of a Flower app, whose pyproject.toml names the apps and the run config; default: snnfl's own",
    )
    add("--server-app", metavar="MODULE:ATTR", help="a ServerApp, instead of --app")
    add("--client-app", metavar="MODULE:ATTR", help="a ClientApp, instead of --app")
    add("--num-supernodes", metavar="N", type=int, required=True, help="number of clients")
    add(
        "--run-config",
        metavar="'KEY=VALUE ...'",
        action="append",
        default=[],
        help="override keys of the app's run config, values in TOML, or name a .toml file; may be repeated. "
        "An app's `data.clients` follows --num-supernodes",
    )
    add("--backend", choices=["ray"], default="ray", help="Flower's runtime; there is one")
    add(
        "--backend-config",
        metavar="JSON",
        default="{}",
        help="`client_resources`: num_cpus and num_gpus of each client (default: 1 CPU, so that a two-core machine "
        "runs two clients at a time; Flower's default is 2), and `init_args`: arguments of ray.init",
    )
    add(
        "--plugin",
        metavar="FILE_OR_MODULE",
        action="append",
        default=[],
        help="your own, for snnfl's app; may be repeated",
    )
    add(
        "--verbose",
        action="store_true",
        help="show debug messages, tracebacks of clients that fail, and what workers print",
    )
    return parser


def _load(options: argparse.Namespace) -> FlowerApp:
    """Load the apps that the options name, and the run config that they declare."""
    if options.num_supernodes < 1:
        raise UsageError(f"--num-supernodes {options.num_supernodes}: expected at least 1")
    pair = [options.server_app, options.client_app]
    if any(pair) and (options.app is not None or not all(pair)):
        raise UsageError("expected either --app DIR or both --server-app MODULE:ATTR and --client-app MODULE:ATTR")
    if options.app is None and not any(pair):
        return _own_app()
    defaults = None
    if options.app is not None:
        try:
            config = get_project_config(options.app)["tool"]["flwr"]["app"]
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(f"--app {options.app}: {_one_line(error)}") from None
        pair = [config["components"]["serverapp"], config["components"]["clientapp"]]
        defaults = flatten_dict(config.get("config"))
    return FlowerApp(
        server=_load_object(pair[0], ServerApp, options.app),
        client=_load_object(pair[1], ClientApp, options.app),
        defaults=defaults,
    )


def _own_app() -> FlowerApp:
    use_app()
    from clients.client_app import app as client
    from strategies.server_app import app as server

    return FlowerApp(server=server, client=client, defaults=flatten(Config()))


def _load_object(reference: str, kind: type[AnyApp], folder: str | None) -> AnyApp:
    """Load ``module:attribute`` from a folder (the current one for ``None``) or an installed package."""
    try:
        loaded = load_app(reference, UsageError, folder)
    except UsageError as error:
        raise UsageError(str(error).strip().splitlines()[0]) from None
    except ModuleNotFoundError as error:
        if not f"{reference.partition(':')[0]}.".startswith(f"{error.name}."):
            raise  # the app is there, but imports something that is not: a traceback shows where
        raise UsageError(
            f"{reference}: no module {error.name!r} in {folder or '.'} or the installed packages"
        ) from None
    if not isinstance(loaded, kind):
        raise UsageError(f"{reference}: expected a {kind.__name__}, found {type(loaded).__name__}")
    return loaded


def _run_config(
    defaults: Mapping[str, FlatValue] | None, overrides: Sequence[str], clients: int
) -> dict[str, FlatValue]:
    """Merge the overrides into the declared run config and make ``data.clients``, if declared, agree with it."""
    given: dict[str, FlatValue] = {}
    for item in overrides:
        given.update(_parse_override(item))
    if defaults is not None:
        unknown = next((key for key in given if key not in defaults), None)
        if unknown is not None:
            raise UsageError(f"--run-config: unknown key {unknown!r}{nearest(unknown, list(defaults))}")
    merged = {**(defaults or {}), **given}
    if given.get("data.clients", clients) != clients:
        raise UsageError(f"data.clients={given['data.clients']}: --num-supernodes is {clients}; leave one of them out")
    if "data.clients" in merged:
        merged["data.clients"] = clients
    return merged


def _node_config(config: Config | None) -> dict[str, FlatValue]:
    """Give the clients of our own app a place for their state, beside that of the server."""
    if config is None:
        return {}
    from strategies.run_directory import simulated_node  # torch takes longer than showing the help

    return dict(simulated_node(config))


def _parse_override(item: str) -> dict[str, Any]:
    """Parse one ``key=value ...`` or the name of a TOML file by Flower's rules, which ignore what they can't read."""
    try:
        words = [] if item.endswith(".toml") else shlex.split(item)
        parsed = parse_config_args([item])
    except click.ClickException as error:
        hint = "text needs quotes, as in 'key=\"text\"'"
        raise UsageError(f"--run-config {item!r}: not TOML ({_one_line(error.__cause__)}); {hint}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--run-config {item!r}: {_one_line(error)}") from None
    for word in words:
        if word.partition("=")[0] not in parsed:
            raise UsageError(f"--run-config {item!r}: expected key=value, found {word!r}")
    return parsed


def _backend_config(text: str) -> dict[str, dict[str, Any]]:
    """Parse ``--backend-config``; like Flower, take ``client-resources`` for ``client_resources``."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--backend-config {text!r}: not JSON ({error})") from None
    if not isinstance(parsed, dict) or not all(isinstance(value, dict) for value in parsed.values()):
        raise UsageError(f"--backend-config {text!r}: expected an object of objects, see the example")
    sections = {section.replace("-", "_"): value for section, value in parsed.items()}
    known = ["client_resources", "init_args"]
    for section in sections:
        if section not in known:
            raise UsageError(f"--backend-config: unknown key {section!r}{nearest(section, known)}")
    return {
        section: {key.replace("-", "_"): value for key, value in values.items()} for section, values in sections.items()
    }


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())
