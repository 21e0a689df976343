"""Which attacks an audit runs: those on updates, and those that ask who was in a client's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.running import show_list
from snnfl.attacks import Attack, get_attack, names
from snnfl.auditing.suite import applicable
from snnfl.config import ConfigError, UpdateKind, nearest
from snnfl.membership_attacks.federated import FEDERATED_ATTACKS, FederatedAttack
from snnfl.threat import FACTS

CONTROL_ATTACKS = ("closed_form", "feature_inversion", "inverting_gradients", "inverting_statistics")
"""Plain counterparts of the attacks on S-updates, on clients' plain twins unless plain attacks are named.

Of ``joint_rounds`` there is none: a twin has no earlier rounds.
"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The attacks of an audit, by name.

    Attributes:
        on_run: On the clients' updates.
        on_twins: On the plain twins of an S-run's clients.
        members: Those that ask who was in the clients' data.
        left: Why a named attack doesn't apply, by its name.
        named: Whether attacks were named: of these none that cannot run is passed over in silence.
    """

    on_run: Sequence[str]
    on_twins: Sequence[str]
    members: Sequence[str]
    left: Mapping[str, str]
    named: bool

    @property
    def some(self) -> bool:
        """Whether there is any."""
        return bool(self.on_run or self.on_twins or self.members)


def check_names(attacks: Sequence[str]) -> None:
    """Look whether all named attacks are known.

    Raises:
        ConfigError: With the nearest known name, of attacks on updates and of those that ask for members alike.
    """
    known = (*names(), *FEDERATED_ATTACKS.names())
    for name in attacks:
        if name not in known:
            own = " (one of your own needs its plug-in: --plugin FILE, or plugins: [FILE])"
            raise ConfigError(f"attack {name!r} is unknown{nearest(name, known)}{own}")


def choose(attacks: Sequence[str], kind: UpdateKind, *, crafted: bool = False, twins: bool = True) -> Choice:
    """Choose what attacks a run.

    Named attacks mean these and no others, wherever they apply. Attacks on S-updates are compared with
    :data:`CONTROL_ATTACKS` on the twins, unless attacks on plain updates alone are named.

    Args:
        attacks: Names; empty for all that apply.
        kind: Of the run's updates.
        crafted: Whether the server sent crafted weights.
        twins: Whether an S-run's clients have plain twins.
    """
    on_run = applicable(kind, crafted=crafted)
    of_run = [name for name in attacks if name in on_run] if attacks else on_run
    on_twins: Sequence[str] = ()
    on_updates = [name for name in attacks if name not in FEDERATED_ATTACKS]
    if kind == "converted" and twins and (on_updates or not attacks):
        plain = [name for name in attacks if name in applicable("plain", crafted=crafted)]
        on_twins = plain if any(name not in of_run for name in plain) else CONTROL_ATTACKS
    asked = [each for each in FEDERATED_ATTACKS if not attacks or each.name in attacks]
    members = [each.name for each in asked if kind in each.against]
    left = [name for name in attacks if name not in of_run and name not in members]
    reasons = {name: _unlike(name, kind, name in on_twins) for name in left}
    return Choice(on_run=of_run, on_twins=on_twins, members=members, left=reasons, named=bool(attacks))


def _unlike(name: str, kind: UpdateKind, on_twins: bool) -> str:
    """Say why a named attack doesn't apply to updates of a kind."""
    if "crafted_weights" in (attack := _named(name)).needs:
        return (
            "reads weights that a malicious server made for it, and this run's were honest; record such a run by "
            f"audit.crafted={name} strategy.spiking=false"
        )
    kinds = " and ".join(sorted(attack.against))
    instead = "; it attacks the plain twins of its clients" if on_twins else ""
    return f"attacks {kinds} updates, those of this run are {kind} ones{instead}"


def _named(name: str) -> Attack | FederatedAttack:
    return FEDERATED_ATTACKS.find(name) if name in FEDERATED_ATTACKS else get_attack(name)


def show_attacks(console: Console) -> None:
    """List the attacks by what they ask: what each does, which updates it attacks, and what it must know."""
    parts = {"What did clients train on?": names(), "Was a sample in a client's data?": FEDERATED_ATTACKS.names()}
    for title, part in parts.items():
        table = Table(title=title, title_justify="left", show_lines=True)
        table.add_column("attack", no_wrap=True)
        table.add_column("what it does", overflow="fold", min_width=20)
        table.add_column("updates", overflow="fold", max_width=10)
        table.add_column("needs", overflow="fold", max_width=30)
        for attack in map(_named, part):
            cells = (attack.name, attack.summary, ", ".join(sorted(attack.against)), ", ".join(sorted(attack.needs)))
            table.add_row(*map(escape, cells))
        show_list(console, table)
    facts = Table(title="What an attacker may know", title_justify="left")
    facts.add_column("fact", no_wrap=True)
    facts.add_column("what it is", overflow="fold")
    for name, fact in FACTS.items.items():
        facts.add_row(escape(name), escape(fact.meaning))
    show_list(console, facts)
    console.print("updates: plain are an ANN's, converted those of S-runs, native a spiking client's", highlight=False)
    console.print("--deny FACT takes a fact away; an attack that needs it is refused", highlight=False)
