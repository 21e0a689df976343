"""Links that are right on GitHub become right on the site: between documents, to code, to data.

A link to code leads to its page of the API, one to the options to their reference. One to a file that the site doesn't
have becomes plain text. One to a file that doesn't exist is a warning, which ``mkdocs build --strict`` makes an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from repository import ROOT, repository_path, site_uri

log = logging.getLogger("mkdocs.hooks.links")

LINK_OR_CODE = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$|`[^`\n]+`)"
    r"|(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)
"""Whichever begins first: so a link whose text is code is a link, and one within code is code."""


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that is, or was made from, a file of the repository."""
    origin = repository_path(page.file.src_uri)
    if origin is None:
        return markdown  # generated, with the site's own links

    def rewritten(match: re.Match[str]) -> str:
        return match[0] if match["code"] else _rewritten(match, origin, page.file.src_uri)

    return LINK_OR_CODE.sub(rewritten, markdown)


def _rewritten(match: re.Match[str], origin: str, source: str) -> str:
    target, anchor = match["target"], match["anchor"] or ""
    if not target or re.match(r"[a-z]+:", target):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if match["image"] and origin.endswith(".ipynb"):
        return match[0]  # a cell's output, which pages.py puts beside the page
    if not (ROOT / path).exists():
        log.warning("%s: the link to %s leads nowhere", origin, target)
        return match[0]
    uri = site_uri(path)
    if uri is None:
        return match["text"]
    return f"{match['image']}[{match['text']}]({posixpath.relpath(uri, posixpath.dirname(source) or '.')}{anchor})"
