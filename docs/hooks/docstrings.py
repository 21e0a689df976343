"""What our docstrings write as Python does, written as Markdown does: Sphinx's roles, and doctests."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Makes a role a link to its page of the API, and fences a doctest."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            text = DOCTEST.sub(r"\g<indent>```pycon\n\g<0>\n\g<indent>```", obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda match: _link(match, obj), text)


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    """Resolve the name of a role where it is used, as Python would; one that has no page stays code."""
    name = match["name"]
    shown = name.rpartition(".")[2] if match["short"] else name
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
