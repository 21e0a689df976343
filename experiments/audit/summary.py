"""What an audit found in three sentences: what leaked, to whom, and how sure that is; and what is proven beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.audit.found import Audit
from snnfl.auditing.best import Best
from snnfl.auditing.measures import IDENTIFIED, MEASURES, Metric
from snnfl.auditing.scorecard import GIVEN, MALICIOUS, Entry
from snnfl.auditing.scoring import CANDIDATES
from snnfl.auditing.selection import Compared
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.auditing.verdicts import judged_metrics
from snnfl.config import Config, counted
from snnfl.data import DataKind

SEVERITY = ("nothing seen", "unclear", "leaks")
"""Verdicts on what was scored, the worst last."""

NOUNS: dict[DataKind, str] = {
    "images": "images", "events": "recordings", "audio": "sounds", "series": "series", "table": "rows"
}  # fmt: skip
"""What a client's samples are called."""


def leading(entries: Sequence[Entry]) -> Entry | None:
    """Return the attack that leaks most: the worst verdict, then the best first metric; ``None`` if none was scored."""
    scored = [entry for entry in entries if entry["verdict"] in SEVERITY]
    return max(scored, key=lambda e: (SEVERITY.index(e["verdict"]), _gain(e)), default=None)


def leading_of_run(audit: Audit) -> Entry | None:
    """Return the attack that leaks most of the run's own updates; of plain twins where only these were attacked."""
    own = [entry for entry in audit.entries if entry["updates"] != PLAIN_TWIN]
    return leading(own or audit.entries)


def leading_of_twins(audit: Audit, server_round: int) -> Entry | None:
    """Return the attack that leaks most of the plain twins of a round's clients."""
    return leading([e for e in audit.entries if e["updates"] == PLAIN_TWIN and e["round"] == server_round])


def summary(audit: Audit) -> list[tuple[str, str]]:
    """Say in a sentence each what leaked, to whom, and how sure that is."""
    found = leading_of_run(audit)
    if found is None:
        return [*_unscored(audit), *proven(audit.config, audit.metrics)]
    return [
        ("What leaked.", _what(found, audit)),
        ("To whom.", _to_whom(found, audit)),
        ("How sure.", _how_sure(found, next((b for b in audit.best if b.server_round == found["round"]), None))),
        *proven(audit.config, audit.metrics),
    ]


WHOSE = {
    "central": "of a client, for whoever gets what the server sends; the server sees each update as it is",
    "distributed": "of a client, for the server, too, which sees noised sums",
    "local": "of all that a client sends, for the server, too",
    "example": "of a single sample, for the server, too",
}
"""Whom an epsilon protects from whom, by its mechanism."""

SUMMED = (
    "That a server which keeps the protocol learns of a round's updates nothing but their sum; of what that sum tells, "
    "and sums of several rounds together, nothing."
)


def proven(config: Config | None, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say beside the attacks what is proven of a run's masks and of its noise, and what canaries refute."""
    if config is None or not rows:
        return []
    if config.privacy.mechanism == "none":
        return [("What is proven.", SUMMED)] if config.strategy.secure_aggregation else []
    last, delta, whose = rows[-1], config.privacy.delta, WHOSE[config.privacy.mechanism]
    if last.get("epsilon") is None:
        return [("What is proven.", "Nothing: updates are clipped, and no noise is added.")]
    text = f"An epsilon of {last['epsilon']:.2f} at delta {delta:g} after round {last['round']}, {whose}."
    lower = last.get("epsilon_empirical")
    if lower is not None:
        fits = "less than proven, as it should be" if lower <= last["epsilon"] else "more than proven: there is a fault"
        text += f" Canaries refute one of {lower:.2f} (95 %), {fits}."
    return [("What is proven.", text)]


def difference(found: Compared, metric: Metric) -> str:
    """Say by how much the best attack is better or worse: ``4.8 dB better (95 %: +3.0 to +6.5) than``.

    Of samples that both find exactly, rounding would be what is compared.
    """
    if all(metric.is_exact(value) for chosen in (found.best, found.other) for value in chosen.values.values()):
        return "as exact as"
    unit = " dB" if "dB" in metric.title else f" in {metric.title}"
    how = "better" if found.value >= 0 else "worse"
    form = f"+{metric.form}"
    ends = "" if found.interval is None else f" (95 %: {found.interval[0]:{form}} to {found.interval[1]:{form}})"
    return f"{abs(found.value):{metric.form}}{unit} {how}{ends} than"


def _apart(found: Compared) -> bool:
    return found.interval is not None and not found.interval[0] <= 0 <= found.interval[1]


def _gain(entry: Entry) -> float:
    first = MEASURES[entry["kind"]].metrics[0]
    return first.gain(entry["value"], entry["floor"][first.name])


def _what(found: Entry, audit: Audit) -> str:
    noun = NOUNS[found["kind"]]
    tried = sum(
        entry["verdict"] in SEVERITY and (entry["round"], entry["updates"]) == (found["round"], found["updates"])
        for entry in audit.entries
    )
    best = "the only attack" if tried == 1 else f"which leaks most of {tried} attacks"
    who = f"{found['attack']}, {best} on {found['updates']}s of round {found['round']}"
    better, unsure, worse = (_measured(found, (each,)) for each in ("better", "unclear", "worse"))
    rest = _measured(found, ("unclear", "worse"))
    if found["verdict"] == "leaks":
        text = (
            f"{noun.capitalize()} leaked: {who}, reconstructs more than anybody can guess without an update: {better}"
        )
        text += "".join(f"; {how}: {they}" for how, they in (("not surely more", unsure), ("no more", worse)) if they)
    elif found["verdict"] == "unclear":
        text = f"Whether {noun} leaked is unclear: {who}, isn't surely better than a guess without an update: {rest}"
    else:
        text = f"No {noun} were seen: {who}, stays behind a guess without an update: {rest}"
    return f"{text}. {_of_labels(found, audit)}"


def _of_labels(found: Entry, audit: Audit) -> str:
    """Say what leaked of labels: by that attack, unless another one tells them for surer, or they were given."""
    if found["label_verdict"] == GIVEN:
        return "Labels were given to the attacker, so whether they leak isn't asked."

    def severity(entry: Entry) -> int:
        return SEVERITY.index(entry["label_verdict"])

    def right(entry: Entry) -> float:
        return float(entry["metrics"]["label_accuracy"]["value"])

    scored = [e for e in audit.entries if e["updates"] == found["updates"] and e["label_verdict"] in SEVERITY]
    other = max(scored, key=lambda entry: (severity(entry), right(entry)))
    surer = severity(other) > severity(found)
    entry, by = (other, f", by {other['attack']} in round {other['round']}") if surer else (found, "")
    told = {"leaks": "Labels leaked", "unclear": "Whether labels leaked is unclear"}
    words = told.get(entry["label_verdict"], "Labels were no better than guessed")
    guess = (
        ""
        if entry["label_verdict"] == "leaks"
        else f" (labels spread evenly over the classes: {entry['label_floor']:.0%})"
    )
    return f"{words}{by}: {right(entry):.0%} are right{guess}."


def _measured(found: Entry, directions: Sequence[str]) -> str:
    """Write the metrics that stand so against the best guess, each beside it."""
    parts = []
    for metric in judged_metrics(found["kind"]):
        if found["against_floor"][metric.name] in directions:
            value, floor = found["metrics"][metric.name]["value"], found["floor"][metric.name]
            if metric.name == IDENTIFIED:
                parts.append(f"{value:.0%} can be told from {others(found)} others (IIP; the best guess: {floor:.2%})")
            else:
                name, form = metric.title.removesuffix(" in dB"), metric.form
                unit = " dB" if name != metric.title else ""
                parts.append(f"{metric.what} ({name} {value:{form}}{unit}, the best guess {floor:{form}})")
    return ", ".join(parts)


def others(*entries: Entry) -> str:
    """Say among how many other samples of training each is to be told: fewer where no more are at hand."""
    counts = sorted({round(1 / entry["chance"]) - 1 for entry in entries if entry["chance"]})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}" if counts else f"{CANDIDATES:,}"


def _to_whom(found: Entry, audit: Audit) -> str:
    who, facts = found["threat_model"]["who"], counted(len(found["threat_model"]["facts"]), "fact")
    but = f", but not {' and '.join(sorted(audit.denied))} (denied; " if audit.denied else " ("
    known = f"{facts} of the training{but}in the report: Threat models)."
    clients, colluding, rounds = (found["threat_model"][name] for name in ("clients", "colluding", "rounds"))
    if found["setting"] == "diagnostic":
        return f"Nobody, as it stands: this attacker was given what no server has ({'; '.join(found['reasons'])})."
    if who == MALICIOUS:
        return "A malicious server, which sends weights of its own making instead of keeping the protocol."
    if colluding or rounds > 1 or clients not in (None, 1):
        beside = f" and {counted(colluding, 'client')} that collude{'s' if colluding == 1 else ''} with it"
        has = f"the sum of {clients} clients' updates" if clients != 1 else "what is left of a sum, one client's update"
        if rounds > 1:
            whose = "one client's update" if clients == 1 else has
            has = f"an estimate of {whose}, made by comparing the sums of {rounds} rounds, later ones too,"
        return (
            f"The server{beside if colluding else ''}: it keeps the protocol of secure aggregation, and has {has} and "
            f"{known}"
        )
    return (
        "The server, and whoever reads what it receives: it keeps the protocol, and knows nothing but the updates and "
        f"{known}"
    )


def _how_sure(found: Entry, best: Best | None) -> str:
    text = f"{counted(found['victims'], 'client')} of one run; another network or seed may leak more or less."
    if found["victims"] == 1:
        return f"{text} One client gives no interval, so no verdict is sure: audit more of them."
    if best is not None:
        chosen, title = best.over_floor.best.attack, best.metric.title.removesuffix(" in dB")
        text += (
            f" The best attack by {title}, chosen for each client on the others (mostly {chosen}), is "
            f"{difference(best.over_floor, best.metric)} the best guess"
        )
        if best.over_control is not None:
            than, twins = difference(best.over_control, best.metric), best.over_control.other.attack
            text += f", and {than} the best attack on what a plain run would have sent (mostly {twins})"
        text += "."
        if found["against_floor"].get(best.metric.name) == "unclear" and _apart(best.over_floor):
            text += (
                f" That interval is of {title} alone; a verdict holds for all "
                f"{len(found['against_floor'])} metrics at once, which asks for more."
            )
    if found["verdict"] != "leaks":
        text += " None of these attacks is surely better than a guess; others, or more iterations, might be."
    return text


def _unscored(audit: Audit) -> list[tuple[str, str]]:
    """Say why nothing was scored: nobody told the truth, or nothing could be attacked."""
    made = [entry for entry in audit.entries if entry["verdict"] == "not scored"]
    if made:
        noun, attacks = NOUNS[made[0]["kind"]], counted(len(made), "attack")
        return [
            ("What leaked.", f"See for yourself: {attacks} made {noun}, and nobody told the true ones to score them."),
            ("To whom.", _to_whom(made[0], audit)),
            ("How sure.", "Without the truth no verdict can be given."),
        ]
    reasons = dict.fromkeys(entry["refusal"] for entry in audit.entries)
    return [("What leaked.", f"Nothing could be attacked: {'; '.join(reasons) or 'no attack applies'}.")]
