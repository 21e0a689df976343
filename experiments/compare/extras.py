"""What a study asks to be measured of its finished cells: energy, and what an audit finds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from experiments.audit.choice import check_names
from snnfl.auditing.victims import Scope, scope_of
from snnfl.config import Config, ConfigError, nearest, update_kind


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """The options of ``snnfl audit``.

    Attributes:
        attacks: Names; those that don't apply to a cell are left out there. Empty, where a study names none: all that
            apply.
        rounds: Empty for all that are recorded.
        clients: Partitions; empty for all.
        iterations: Budgets: each attack runs once with each of them.
        restarts: Random starts per victim.
        labels: Whether the private labels are given, a diagnosis.
        deny: Facts that the attacker lacks.
        colluding: Of how many clients of each round the attacker knows the updates, in cells with secure aggregation:
            each attack runs once with each of these numbers.
        differences: There, whether each attack runs once more on what the sums of several rounds tell of one client.
    """

    attacks: tuple[str, ...] = ()
    rounds: tuple[int, ...] = ()
    clients: tuple[int, ...] = ()
    iterations: tuple[int, ...] = (300,)
    restarts: int = 1
    labels: bool = False
    deny: tuple[str, ...] = ()
    colluding: tuple[int, ...] = (0,)
    differences: bool = False

    @property
    def scopes(self) -> list[Scope]:
        """Who is attacked, by each attacker: of each number of colluding clients, and the one that compares rounds."""
        asked = partial(scope_of, rounds=self.rounds, partitions=self.clients, labels=self.labels, denied=self.deny)
        found = [asked(colluding=colluding) for colluding in self.colluding]
        return [*found, asked(differences=True)] if self.differences else found

    def of(self, config: Config) -> AuditPlan:
        """Return what applies to a cell."""
        return self if config.strategy.secure_aggregation else replace(self, colluding=(0,), differences=False)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is to be measured.

    Attributes:
        energy_images: Test images on which spikes are counted; 0: none.
        audit: ``None``: no audit.
    """

    energy_images: int = 0
    audit: AuditPlan | None = None

    def of(self, config: Config) -> Extras:
        """Return what applies to a cell: energy to runs with a spiking network, an audit to runs that are recorded."""
        return replace(
            self,
            energy_images=self.energy_images if update_kind(config) in ("converted", "native") else 0,
            audit=self.audit.of(config) if self.audit is not None and config.audit.record else None,
        )

    @property
    def file(self) -> str | None:
        """Name of the file that holds the results, which follows from what is asked; ``None`` if nothing is."""
        if self == NOTHING:
            return None
        return f"extras-{hashlib.sha256(self.to_json().encode()).hexdigest()[:10]}.json"

    def to_json(self) -> str:
        """Write as JSON; what isn't asked for stands there as before it could be, for what is measured already."""
        content = asdict(self)
        if self.audit is not None and self.audit.colluding == (0,):
            del content["audit"]["colluding"]
        if self.audit is not None and not self.audit.differences:
            del content["audit"]["differences"]
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Extras:
        """Read what :meth:`to_json` wrote."""
        content = json.loads(text)
        plan: dict[str, Any] | None = content["audit"]
        return cls(energy_images=content["energy_images"], audit=None if plan is None else _plan(plan))


NOTHING = Extras()


def read_extras(energy: Any, audit: Any) -> Extras:
    """Check a study's keys ``energy`` and ``audit``.

    Raises:
        ConfigError: Naming the key.
    """
    images: Any = 0
    if energy is not None:
        images = energy.get("images") if isinstance(energy, dict) and set(energy) == {"images"} else None
        if not isinstance(images, int) or images < 1:
            raise ConfigError(f"energy={energy}: expected {{images: N}}, the test images on which spikes are counted")
    return Extras(energy_images=images, audit=None if audit is None else _read_plan(audit))


def _read_plan(given: Any) -> AuditPlan:
    defaults = asdict(AuditPlan())
    if not isinstance(given, dict):
        raise ConfigError(f"audit={given}: expected a mapping with {', '.join(defaults)}")
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"audit: unknown key {key!r}{nearest(str(key), list(defaults))}")
        if key == "attacks" and value == []:
            raise ConfigError("audit.attacks=[]: name attacks, or leave the key out for all that apply")
        several = isinstance(defaults[key], tuple)
        parts = value if isinstance(value, list) and several else [value]
        kind = str if key in ("attacks", "deny") else bool if key in ("labels", "differences") else int
        low = 0 if key in ("clients", "colluding") else 1
        if not all(type(part) is kind and (not isinstance(part, int) or part >= low or kind is bool) for part in parts):
            raise ConfigError(f"audit.{key}={value}: expected {_KINDS[kind]}{', or a list of them' if several else ''}")
    plan = _plan(
        {key: [v] if isinstance(defaults[key], tuple) and not isinstance(v, list) else v for key, v in given.items()}
    )
    check_names(plan.attacks)
    _ = plan.scopes  # knows the facts
    return replace(plan, iterations=tuple(sorted({*plan.iterations})), colluding=tuple(sorted({*plan.colluding})))


def _plan(values: dict[str, Any]) -> AuditPlan:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return AuditPlan(**fields)


_KINDS: dict[type, str] = {str: "a name", bool: "true or false", int: "a whole number"}
