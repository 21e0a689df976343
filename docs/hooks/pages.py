"""Pages that are made from something else, each time the site is built.

==========================  ==========================================================================
page                        made from
==========================  ==========================================================================
``configuration.md``        the dataclasses of ``snnfl/config``
``api/**``                  every module, whose docstrings mkdocstrings renders
``experiments/snfl/**``     ``experiments/snfl/*/README.md``, with the files beside them; ``federated_snn``,
                            ``gradient_leakage``, ``membership`` and ``privatesnn`` alike
``notebooks/*.md``          ``docs/notebooks/*.ipynb``, as they are committed
``contributing, changelog`` the files of the repository's root
==========================  ==========================================================================
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from configuration import configuration_page
from repository import PACKAGES, PAGES, ROOT, STUDIES, api_uri, site_uri


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of ``docs/``."""
    made = [*_root_pages(config), *_study_pages(config), *_notebooks(config), *_api_pages(config)]
    made.append(File.generated(config, "configuration.md", content=configuration_page()))
    for file in made:
        files.append(file)
    return files


def _root_pages(config: MkDocsConfig) -> Iterator[File]:
    for path, uri in PAGES.items():
        yield File.generated(config, uri, abs_src_path=str(ROOT / path))


def _study_pages(config: MkDocsConfig) -> Iterator[File]:
    for studies in STUDIES:
        files = [path for path in (ROOT / studies).rglob("*") if path.is_file()]
        for file in sorted(path for path in files if path.suffix not in (".py", ".pyc")):
            if (uri := site_uri(file.relative_to(ROOT).as_posix())) is not None:
                yield File.generated(config, uri, abs_src_path=str(file))


def _notebooks(config: MkDocsConfig) -> Iterator[File]:
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        body, resources = MarkdownExporter().from_filename(str(notebook))  # type: ignore[no-untyped-call]
        note = f'\n\n<a href="{notebook.name}" download>This page as a notebook</a>\n'
        folder = PurePosixPath("notebooks")
        for name, content in resources["outputs"].items():
            yield File.generated(config, str(folder / f"{notebook.stem}_{name}"), content=content)
            body = body.replace(f"]({name})", f"]({notebook.stem}_{name})")
        yield File.generated(config, str(folder / f"{notebook.stem}.md"), content=body + note)


def _api_pages(config: MkDocsConfig) -> Iterator[File]:
    modules = [
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    yield File.generated(config, "api/index.md", content=_overview("API", [PurePosixPath(p) for p in PACKAGES], "api"))
    for module in modules:
        parts = module.with_suffix("").parts
        package = parts[-1] == "__init__"
        dotted = ".".join(parts[:-1] if package else parts)
        uri = api_uri(module)
        if package:
            inner = [m for m in modules if m.parent == module.parent and m != module]
            inner += [m.parent for m in modules if m.parent.parent == module.parent and m.name == "__init__.py"]
            content = _overview(dotted, sorted(inner), str(PurePosixPath(uri).parent), docstring=_docstring(module))
        else:
            content = f"---\ntitle: {parts[-1]}\n---\n\n# `{dotted}`\n\n::: {dotted}\n"
        yield File.generated(config, uri, content=content)


def _overview(title: str, modules: list[PurePosixPath], folder: str, docstring: str = "") -> str:
    """Return a page that lists modules with the first lines of their docstrings."""
    rows = []
    for module in modules:
        file = module if module.suffix else module / "__init__.py"
        link = PurePosixPath(api_uri(file)).relative_to(folder)
        rows.append(f"| [`{module.stem}`]({link}) | {_docstring(file).partition(chr(10))[0]} |")
    head = f"---\ntitle: {title.rpartition('.')[2]}\n---\n\n# `{title}`\n\n" if title != "API" else "# API\n\n"
    return head + docstring + "\n\n| module | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _docstring(module: PurePosixPath) -> str:
    return ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8"))) or ""
