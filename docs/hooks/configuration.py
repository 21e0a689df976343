"""The reference of every option, from the dataclasses that declare them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Any

from snnfl.config import Config, flatten

INTRODUCTION = """\
# Configuration

Every option of `snnfl run`, made from the dataclasses of [snnfl.config](api/snnfl/config/options.md). Set one in a YAML
file under its section, or on the command line as `section.key=value`. A wrong name, type or value is refused in one
line before anything runs. `snnfl run CONFIG.yaml --print-config` prints what a run would use. Beside the sections a
file may have a list `plugins` of [files of your own](how-to/plugins.md).
"""


def configuration_page() -> str:
    """Return the page as Markdown: a table per section, a row per option."""
    hints = typing.get_type_hints(Config)
    return INTRODUCTION + "".join(_section(field.name, hints[field.name]) for field in dataclasses.fields(Config))


def _section(name: str, kind: type) -> str:
    hints, defaults = typing.get_type_hints(kind), flatten(Config())
    rows = []
    for field in dataclasses.fields(kind):
        default = json.dumps(defaults[f"{name}.{field.name}"]).strip('"')
        kinds, bounds, doc = _words(hints[field.name]), _range(field.metadata), _escaped(field.metadata["doc"])
        rows.append(f"| `{field.name}` | {kinds} | `{default}` | {bounds} | {doc} |")
    about = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(kind) or "")
    head = "| key | type | default | range | meaning |\n|---|---|---|---|---|\n"
    return f"\n## {name}\n\n{about}\n\n{head}" + "\n".join(rows) + "\n"


def _words(hint: Any) -> str:
    """Return a type in words; the values themselves, where there are only some."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # of Literal[...] | None the second, before 3.14
        return " or ".join(_words(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {_words(typing.get_args(hint)[0])}"
    return {types.NoneType: "null", str: "text", bool: "true, false", int: "whole number", float: "number"}[hint]


def _range(bounds: typing.Mapping[str, Any]) -> str:
    low, high, above = (bounds[name] for name in ("low", "high", "above"))
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    signs = (("more than", above), ("at least", low), ("at most", high))
    return ", ".join(f"{sign} {bound:,}" for sign, bound in signs if bound is not None)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
