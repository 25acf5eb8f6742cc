"""The campaign's result: a table by family, and every failure in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rcdeploy.machine import describe

from .attempts import DONE, FAILED, REFUSED, Outcome
from .families import FAMILIES

MAX_TEXT = 240


@dataclass(frozen=True)
class Effort:
    """What a campaign cost, in seconds: cpu of all its processes."""

    wall: float
    cpu: float
    jobs: int


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Rows of Markdown: tried, survived and failed by family."""
    outcomes = list(outcomes)
    lines = ["| family | tried | right result | refused in words | survived | failed |", "|---|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        if mine := [o for o in outcomes if o.attempt.family == name]:
            lines.append(_row(family.title, mine))
    return [*lines, _row("**together**", outcomes)]


def _row(title: str, outcomes: Sequence[Outcome]) -> str:
    done, refused, failed = (sum(o.status == s for o in outcomes) for s in (DONE, REFUSED, FAILED))
    return f"| {title} | {len(outcomes):,} | {done:,} | {refused:,} | {done + refused:,} | {failed:,} |"


def failures(outcomes: Iterable[Outcome]) -> list[str]:
    return [f"- {sentence(o)}" for o in outcomes if o.status == FAILED]


def sentence(outcome: Outcome) -> str:
    """ "packages:17 (seed 0): what was tried: what happened"."""
    parts = [" ".join(part.split()) for part in (outcome.input, outcome.text)]
    parts = [part if len(part) <= MAX_TEXT else f"{part[:MAX_TEXT]}..." for part in parts if part]
    text = ": ".join(parts).encode("utf-8", "backslashreplace").decode()
    return f"`{outcome.attempt}` (seed {outcome.attempt.seed}): {text}"


def page(outcomes: Sequence[Outcome], command: str, seed: int, effort: Effort) -> str:
    """The whole result as Markdown, without a date."""
    machine = describe()
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine["versions"].items()))
    listed = failures(outcomes) or ["None."]
    lines = [
        "# Campaign: faults and hostile inputs",
        "",
        "[What it is, and how to repeat one attempt](../docs/contributing/campaign.md). Written by",
        "",
        f"    {command}",
        "",
        f"Seed {seed}; {effort.jobs} processes at once, {effort.cpu / 60:.0f} minutes of processor time, "
        f"{effort.wall / 60:.0f} minutes in all. {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB; {versions}.",
        "",
        *table(outcomes),
        "",
        "## Failures",
        "",
        *listed,
    ]
    return "\n".join(lines) + "\n"
