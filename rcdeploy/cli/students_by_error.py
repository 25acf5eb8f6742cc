"""rcdeploy students --budget --by-error: errors of removed parts, and the student that they choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from ..units import giga_text
from .console import print_json, quieten_libraries, show_table

if TYPE_CHECKING:
    from ..bench.budget import Budget, Candidate
    from ..bench.layer_error import Part


@dataclass(frozen=True)
class ByError:
    """Parts and candidates with their errors, the chosen candidate, the limits it keeps, its own error as measured."""

    parts: list[Part]
    candidates: list[Candidate]
    chosen: Candidate
    limits: Budget
    measured: float

    @property
    def reason(self) -> str:
        return (
            f"{self.chosen.name}: the least predicted error within the limits, {self.chosen.error:.2g}; measured it is "
            f"{self.measured:.2g}. Nothing was trained."
        )

    def plot(self, path: Path) -> None:
        from ..bench.by_error import plot

        plot(self.candidates, self.chosen, self.measured, path)

    def show(self, teacher: str, as_json: bool) -> None:
        """The parts; and of the students those that are named, timed, or beaten by no other in error and parameters."""
        from ..bench.by_error import front
        from ..student.spec import STUDENTS

        if as_json:
            print_json(self._json())
            return
        rows: list[dict[str, Any]] = [
            {
                "removed alone": part.name,
                "error": f"{part.error:.2g}",
                "parameters saved": part.parameters,
                "GMACs saved": giga_text(part.macs),
            }
            for part in self.parts
        ]
        show_table(f"Parts of {teacher}: error of its prediction without each", list(rows[0]), rows, as_json=False)
        best = front(self.candidates, "parameters")
        by_size = sorted(self.candidates, key=lambda candidate: -candidate.parameters)
        rows = [
            self._row(candidate)
            for candidate in by_size
            if candidate in best or candidate.name in STUDENTS or candidate.seconds or candidate is self.chosen
        ]
        show_table(f"Students of {teacher} for {self.limits.text}", list(rows[0]), rows, as_json=False)

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        costs = candidate.costs
        within = self.limits.allows(candidate)
        return {
            "student": candidate.name,
            "error, predicted": f"{candidate.error:.2g}",
            "parameters": candidate.parameters,
            "MB in half": f"{costs['mb']:.3g}",
            "GMACs": giga_text(candidate.macs),
            **({"ms a call": f"{costs['unet_ms']:.3g}"} if candidate.seconds else {}),
            "": "chosen" if candidate is self.chosen else "" if within else "over",
        }

    def _json(self) -> dict[str, Any]:
        students = [
            {
                "student": candidate.name,
                "settings": list(candidate.settings),
                "parameters": candidate.parameters,
                **candidate.costs,
                "seconds": list(candidate.seconds),
                "error": candidate.error,
                "within": self.limits.allows(candidate),
                "chosen": candidate is self.chosen,
            }
            for candidate in self.candidates
        ]
        parts = [
            {"part": part.name, "error": part.error, "parameters": part.parameters, "macs": part.macs}
            for part in self.parts
        ]
        return {"parts": parts, "students": students, "chosen_error_measured": self.measured}


def choose_by_error(
    teacher: Path,
    prompts: Sequence[str],
    limits: Budget,
    latent_size: tuple[int, int] | None,
    text_length: int,
    timed: Callable[[list[Candidate]], list[Candidate]],
    progress: Progress,
) -> ByError:
    """Measures every part alone, and takes the combination of the least predicted error within the limits.

    Raises RcdeployError for a teacher that cannot be loaded, when nothing can be removed from it, and when nothing is
    small enough, which shows before anything is measured.
    """
    import torch

    from ..bench import by_error, layer_error
    from ..bench.budget import choose
    from ..diffusion_model import LatentDiffusionModel

    quieten_libraries()
    model = LatentDiffusionModel(str(teacher)).to("cuda" if torch.cuda.is_available() else "cpu")
    whole = layer_error.counted_teacher(model.unet_config, latent_size, text_length)
    parts = layer_error.removable_parts(whole, latent_size, text_length)
    choose(by_error.combinations(whole, parts), limits)
    predictions = layer_error.teacher_predictions(model, prompts, latent_size, progress)
    parts = layer_error.measured(parts, model, predictions, progress)
    found = by_error.combinations(whole, parts)
    if limits.is_timed:
        found = timed(by_error.worth_timing(found, limits))
    chosen = choose(found, limits)
    return ByError(parts, found, chosen, limits, layer_error.relative_error(model, chosen.config, predictions))
