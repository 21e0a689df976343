"""Where a file of the repository is found on the site, and the other way round."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]

PACKAGES = ("snnfl", "clients", "strategies", "experiments")

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that are a file outside ``docs/``."""

COUNTERPARTS = {"README.md": "index.md", "snnfl/config/options.py": "configuration.md"}
"""Files that the site has in another form."""

STUDIES = (
    "experiments/snfl", "experiments/federated_snn", "experiments/gradient_leakage", "experiments/membership",
    "experiments/privatesnn", "experiments/provable_privacy", "experiments/few_steps",
)  # fmt: skip
"""Folders of studies, each with a README of its own and one in each folder below it."""


def site_uri(path: str) -> str | None:
    """Return the address below the site's root of what a path of the repository became, or ``None``.

    Args:
        path: Relative to the repository's root, with ``/``.
    """
    pure = PurePosixPath(path)
    if path in PAGES or path in COUNTERPARTS:
        return (PAGES | COUNTERPARTS)[path]
    if pure.parts[:1] == ("docs",):
        inside = pure.relative_to("docs")
        return str(inside.with_suffix(".md") if inside.suffix == ".ipynb" else inside)
    if pure.parts[:1] and pure.parts[0] in PACKAGES and pure.suffix == ".py":
        return api_uri(pure)
    if path in STUDIES or path.startswith(tuple(f"{studies}/" for studies in STUDIES)):
        if pure.name == "README.md" or not pure.suffix:
            folder = pure.parent if pure.suffix else pure
            return str(folder / "index.md" if str(folder) in STUDIES else folder.with_suffix(".md"))
        return path
    package = pure / "__init__.py"
    return api_uri(package) if (ROOT / package).exists() else None


def repository_path(uri: str) -> str | None:
    """Return what a page was made from, where that is a document of the repository, with links of its own."""
    pure = PurePosixPath(uri)
    if uri in PAGES.values():
        return next(path for path, page in PAGES.items() if page == uri)
    if uri.startswith(tuple(f"{studies}/" for studies in STUDIES)):
        return str(pure.parent / "README.md" if pure.name == "index.md" else pure.with_suffix("") / "README.md")
    path = f"docs/{pure.with_suffix('.ipynb') if pure.parts[0] == 'notebooks' else pure}"
    return path if (ROOT / path).exists() else None


def api_uri(module: PurePosixPath) -> str:
    """Return the address of a module's page, given its file: a package's is the ``index.md`` of its folder."""
    parts = module.with_suffix("").parts
    inside = (*parts[:-1], "index") if parts[-1] == "__init__" else parts
    return "/".join(("api", *inside)) + ".md"
