"""rcdeploy students --budget: the largest of a teacher's students within limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..units import giga_text
from .console import show_table

if TYPE_CHECKING:
    from ..bench.budget import Budget, Candidate


@dataclass(frozen=True)
class BySize:
    """The candidates, the chosen one of them, and the limits that it keeps."""

    candidates: list[Candidate]
    chosen: Candidate
    limits: Budget

    @property
    def reason(self) -> str:
        name = self.chosen.name
        return f"{name}: the largest within the limits. Its size stands for its quality; nothing was trained."

    def plot(self, path: Path) -> None:
        from ..bench.budget import plot

        plot(self.candidates, self.chosen, self.limits, path)

    def show(self, teacher: str, as_json: bool) -> None:
        """Every candidate, largest first: its costs, and whether it is chosen, over a limit, or beaten by a larger one
        that costs no more."""
        from ..bench.budget import front

        found, chosen, limits = self.candidates, self.chosen, self.limits
        best = front(found)
        rows = [
            {
                "student": candidate.name,
                "settings": list(candidate.settings),
                "parameters": candidate.parameters,
                **candidate.costs,
                "seconds": list(candidate.seconds),
                "within": limits.allows(candidate),
                "beaten": candidate.name not in best,
                "chosen": candidate is chosen,
            }
            for candidate in found
        ]
        if as_json:
            show_table("", [], rows, as_json=True)
            return
        table = []
        for row, candidate in zip(rows, found, strict=True):
            state = "chosen" if row["chosen"] else "over" if not row["within"] else "beaten" if row["beaten"] else ""
            times = sorted(1000 * s for s in candidate.seconds)
            table.append(
                {
                    "student": row["student"],
                    "parameters": row["parameters"],
                    "MB in half": f"{row['mb']:.3g}",
                    "GMACs": giga_text(candidate.macs),
                    "ms a call": f"{row['unet_ms']:.3g} ({times[0]:.3g} to {times[-1]:.3g})" if times else "",
                    "": state,
                }
            )
        show_table(f"Students of {teacher} for {limits.text}", list(table[0]), table, as_json=False)


def choose_by_size(
    teacher_config: Mapping[str, Any],
    limits: Budget,
    latent_size: tuple[int, int] | None,
    text_length: int,
    timed: Callable[[list[Candidate]], list[Candidate]],
) -> BySize:
    """The named students and further widths, timed if the limits ask for it. Raises RcdeployError where none is small
    enough, before anything is timed.
    """
    from ..bench.budget import candidates, choose

    found = candidates(teacher_config, latent_size, text_length)
    chosen = choose(found, limits)
    if limits.is_timed:
        found = timed([candidate for candidate in found if limits.allows(candidate)])
        chosen = choose(found, limits)
    return BySize(found, chosen, limits)
