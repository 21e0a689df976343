"""What attacks of every kind share: facts that flags grant, why an attack is refused, and how its errors read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from snnfl.registry import Registry
from snnfl.threat.knowledge import ThreatModelError

R = TypeVar("R")
V = TypeVar("V")

Evidence: TypeAlias = Mapping[str, tuple[str, Callable[[V], bool]]]
"""How the absence of what a fact brings reads, and whether a view has it: a granted fact may bring nothing."""


class Granting:
    """A threat model whose flags are the facts of a table: what a frozen dataclass of booleans inherits.

    Attributes:
        table: All facts, with their meaning.
    """

    table: ClassVar[Registry[str]]

    @property
    def facts(self) -> frozenset[str]:
        """Names of the facts that are granted."""
        return frozenset(item.name for item in fields(self) if getattr(self, item.name))  # type: ignore[arg-type]

    def without(self, denied: Iterable[str]) -> Self:
        """Return the threat model without some facts.

        Raises:
            ConfigError: For a name that is no fact.
        """
        refused = list(denied)
        for name in refused:
            self.table.find(name)
        changes: dict[str, Any] = dict.fromkeys(refused, False)
        return replace(self, **changes)  # type: ignore[type-var]


def lacking(needs: Collection[str], granted: Collection[str], evidence: Evidence[V], view: V) -> str | None:
    """Say which facts that an attack needs are denied, or bring nothing; ``None`` if none."""
    if denied := sorted(set(needs) - set(granted)):
        return f"needs {', '.join(denied)}, which the threat model denies"
    return next((lacks for fact, (lacks, there) in evidence.items() if fact in needs and not there(view)), None)


def named_errors(name: str, failed: type[Exception], attack: Callable[[], R]) -> R:
    """Return what an attack's code returns; its errors become lines that begin with its name.

    Args:
        name: Of the attack.
        failed: What the errors of code that anybody may have written become.
        attack: The code.

    Raises:
        ThreatModelError: If the attack notices that it lacks something.
        Exception: ``failed``, for any other error.
    """
    try:
        return attack()
    except ThreatModelError as error:
        raise ThreatModelError(f"{name}: {error}") from None
    except failed as error:
        raise failed(f"{name}: {error}") from None
    except Exception as error:  # of code that anybody may have written
        raise failed(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
