"""``*`` and ``**`` in the navigation of ``mkdocs.yml``: pages that no other entry names, so that new ones appear."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files


@event_priority(-100)  # after the pages that other hooks add
def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replace every pattern by the pages that it finds."""
    named = {entry for entry in _entries(config.nav) if "*" not in entry}
    free = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
    config.nav = _expanded(config.nav or [], free)
    return files


def _entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _entries(value)
    else:
        for item in nav or ():
            yield from _entries(item)


def _expanded(nav: list[Any], free: list[str]) -> list[Any]:
    expanded: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            expanded += [
                {name: _expanded(value, free) if isinstance(value, list) else value} for name, value in item.items()
            ]
        elif "**" in item:
            expanded += _tree([uri for uri in free if fnmatch.fnmatch(uri, item)], item.partition("**")[0])
        elif "*" in item:
            expanded += [uri for uri in free if fnmatch.fnmatch(uri, item) and uri.count("/") == item.count("/")]
        else:
            expanded.append(item)
    return expanded


def _tree(uris: list[str], folder: str) -> list[Any]:
    """Return pages as MkDocs nests them: a folder is a section, whose ``index.md`` comes first."""
    pages = [uri for uri in uris if "/" not in uri.removeprefix(folder)]
    pages.sort(key=lambda uri: (not uri.endswith("/index.md"), uri))
    inner = sorted(
        {uri.removeprefix(folder).partition("/")[0] for uri in uris} - {uri.removeprefix(folder) for uri in pages}
    )
    sections = [
        {name: _tree([uri for uri in uris if uri.startswith(f"{folder}{name}/")], f"{folder}{name}/")} for name in inner
    ]
    return [*pages[:1], *sections, *pages[1:]] if pages and pages[0].endswith("/index.md") else [*sections, *pages]
