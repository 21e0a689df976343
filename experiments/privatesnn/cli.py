"""The commands ``snnfl privatesnn synthesize``, ``convert``, ``encrypt``, ``run`` and ``attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.arguments import OverridesArgument, PluginOption

privatesnn_app = typer.Typer(
    help="Convert a network without data, encrypt it by training with spikes, and publish it (PrivateSNN).",
    epilog="All take the same file and options, and go on where one was interrupted. docs/private-snn.md",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,
)

StudyArgument = Annotated[
    Path,
    typer.Argument(help="YAML file of a study, or the folder of a finished run", metavar="STUDY.yaml|RUN_DIR"),
]


def _stage(stage: str, study: Path, overrides: list[str] | None, plugin: list[str] | None) -> None:
    from experiments.privatesnn.command import make_published
    from experiments.running import console_of

    make_published(stage, study, overrides or [], plugin or (), console=console_of(verbose=False))


@privatesnn_app.command()
def synthesize(study: StudyArgument, overrides: OverridesArgument = None, plugin: PluginOption = None) -> None:
    """Make images of the network alone, without anybody's data; a study's network is trained first.

    \b
    snnfl privatesnn synthesize experiments/privatesnn/laptop.yaml
    snnfl privatesnn synthesize runs/demo synthesis.images=500 synthesis.iterations=300
    """  # noqa: D301
    _stage("synthesize", study, overrides, plugin)


@privatesnn_app.command()
def convert(study: StudyArgument, overrides: OverridesArgument = None, plugin: PluginOption = None) -> None:
    """Convert the network to a spiking one on the synthetic images: converted-….safetensors.

    \b
    snnfl privatesnn convert experiments/privatesnn/laptop.yaml
    """  # noqa: D301
    _stage("convert", study, overrides, plugin)


@privatesnn_app.command()
def encrypt(study: StudyArgument, overrides: OverridesArgument = None, plugin: PluginOption = None) -> None:
    """Train the converted network with spikes on the synthetic images: published-….safetensors.

    \b
    snnfl privatesnn encrypt experiments/privatesnn/laptop.yaml
    """  # noqa: D301
    _stage("encrypt", study, overrides, plugin)


@privatesnn_app.command()
def run(study: StudyArgument, overrides: OverridesArgument = None, plugin: PluginOption = None) -> None:
    """Do all of it, and measure accuracy and energy; results go to runs/STUDY/, of a run to RUN_DIR/privatesnn/.

    \b
    snnfl privatesnn run experiments/privatesnn/laptop.yaml
    snnfl privatesnn run runs/demo publishing.steps=32 synthesis.images=500 synthesis.iterations=300 \\
        encryption.images=500 encryption.epochs=5

    Of a finished run the server's aggregated network is published: of a plain run its ANN, of an S-run the weights and
    biases of its spiking network. No client is asked for anything.
    """  # noqa: D301
    _stage("run", study, overrides, plugin)


@privatesnn_app.command()
def attack(
    study: Annotated[
        Path | None,
        typer.Argument(help="YAML file of a study, or the folder of a finished run", metavar="STUDY.yaml|RUN_DIR"),
    ] = None,
    overrides: OverridesArgument = None,
    plugin: PluginOption = None,
    show: Annotated[bool, typer.Option("--list", help="list the attacks, and end")] = False,
) -> None:
    """Attack what is published, as a thief who holds it: copies of the weights, class images, questions.

    \b
    snnfl privatesnn attack experiments/privatesnn/attacks.yaml
    snnfl privatesnn attack experiments/privatesnn/attacks.yaml 'attack.deny=[public_images]'
    snnfl privatesnn attack --list

    What the study lacks is made first. attacks.csv tells how many class images an independent network recognises, and
    how good the thief's copy is; class_images-*.png show them, frontier.csv compares locks.
    """  # noqa: D301
    from experiments.privatesnn.attack import attack_published, attacks_table
    from experiments.running import console_of, show_list

    console = console_of(verbose=False)
    if show:
        show_list(console, attacks_table())
        return
    if study is None:
        raise typer.BadParameter("name a study or a run, or --list", param_hint="STUDY.yaml|RUN_DIR")
    attack_published(study, overrides or [], plugin or (), console=console)
