"""Whether a library still has the internals that this project uses: a renamed one must be an error, and say so."""

from __future__ import annotations

from importlib import metadata

TESTED = {"flwr": "1.41.0", "ray": "2.55.1"}
"""The versions of the libraries whose internals are used."""


class IncompatibleLibraryError(ImportError):
    """A library lacks internals that are used; one line that names the tested version."""

    def __init__(self, library: str, by: str, what: str) -> None:
        tested, found = TESTED[library], metadata.version(library)
        super().__init__(
            f"{by} was tested with {library} {tested}, and the installed {found} differs: {what}; "
            f"install {library}=={tested}"
        )


def require(library: str, by: str, owner: object, *names: str) -> None:
    """Check that an object has attributes.

    Args:
        library: That it is of.
        by: The module that uses them.
        owner: A module, a class or an instance.
        names: Of the attributes.

    Raises:
        IncompatibleLibraryError: Naming the first that is missing.
    """
    for name in names:
        if not hasattr(owner, name):
            whose = owner if isinstance(owner, type) else type(owner)
            raise IncompatibleLibraryError(library, by, f"{getattr(owner, '__name__', whose.__name__)} has no {name}")
