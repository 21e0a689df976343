"""Arguments and options that several commands of ``snnfl`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    Path, typer.Argument(help="YAML file, such as experiments/conf/demo.yaml", metavar="CONFIG.yaml")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="options that replace the file's, such as training.batch_size=32", metavar="KEY=VALUE..."),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="your own Python file or module (docs/how-to); repeated for several",
        metavar="FILE_OR_MODULE",
    ),
]
