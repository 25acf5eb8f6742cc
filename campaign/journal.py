"""The outcomes of a campaign as lines of JSON, so that one that was stopped goes on with what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .attempts import Attempt, Outcome
from .table import Effort


class Journal:
    """Outcomes and efforts in a file, or in memory only (None). A line that was cut off by a kill is left out."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.outcomes: dict[Attempt, Outcome] = {}
        self.effort = Effort(0, 0, 0)
        for line in file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "attempt" in entry:
                self._note(Outcome(**{**entry, "attempt": Attempt(**entry["attempt"])}))
            else:
                self._add(Effort(**entry))

    def note(self, outcome: Outcome) -> None:
        self._note(outcome)
        self._append(asdict(outcome))

    def add(self, effort: Effort) -> None:
        """Of one session; a campaign may take several."""
        self._add(effort)
        self._append(asdict(effort))

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[outcome.attempt] = outcome

    def _add(self, effort: Effort) -> None:
        self.effort = Effort(self.effort.wall + effort.wall, self.effort.cpu + effort.cpu, effort.jobs)

    def _append(self, entry: object) -> None:
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
