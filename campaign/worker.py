"""The process that runs attempts: `python -m campaign.worker MATERIALS SCRATCH`, lines of JSON in and out.

In: {"family", "number", "seed"}. Out: {"input"} as soon as it is known what is tried, then {"status", "text"}. What the
code under test prints goes to SCRATCH/log. The one who started this process watches deadline and memory.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

from rcdeploy_runtime.errors import RcdeployError

from .attempts import DONE, FAILED, REFUSED, Attempt, Failed, Place
from .families import FAMILIES
from .guard import GUARD
from .materials import empty
from .memory import MAX_EXTRA_BYTES, peak_rss, reset_peak, rss


def run_attempt(attempt: Attempt, place: Place) -> tuple[str, str]:
    """-> (status, text) of an attempt that ends by itself."""
    family = FAMILIES[attempt.family]
    before = rss()
    reset_peak()
    GUARD.begin(internet=family.internet)
    try:
        family.run(place, attempt.random())
        status, text = DONE, ""
    except RcdeployError as error:
        status, text = (REFUSED, _shown(error)) if family.refusable else (FAILED, f"refused: {error}")
    except Failed as failure:
        status, text = FAILED, str(failure)
    except BaseException as error:  # panics are no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        status = FAILED
        traceback.print_exc()
    extra = peak_rss() - before
    violations = GUARD.end()
    if violations:
        return FAILED, "; ".join(dict.fromkeys(violations))[:400]
    if extra > MAX_EXTRA_BYTES:
        return FAILED, f"it took {extra / 1e9:.1f} GB of memory; then {status}: {text[:200]}"
    return status, text


def _shown(error: RcdeployError) -> str:
    """The message; showing it as the command line does must not fail either."""
    from rcdeploy.cli.console import show_error

    show_error(error)
    return str(error)


def _settle(scratch: Path) -> tuple[TextIO, TextIO]:
    """-> (requests, replies); the code under test has neither stdin nor stdout, and home and temporary folders here."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in ("home", "tmp", "cache"):
        (scratch / name).mkdir(exist_ok=True)
    os.environ |= {
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
    }
    return requests, replies


def main(materials: Path, scratch: Path) -> None:
    requests, replies = _settle(scratch)
    warnings.simplefilter("ignore")
    GUARD.install(scratch)

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    place = Place(materials, scratch / "attempt", lambda text: reply(input=text))
    reply(ready=rss())
    for line in requests:
        attempt = Attempt(**json.loads(line))
        empty(scratch / "tmp")
        os.chdir(empty(place.folder))
        status, text = run_attempt(attempt, place)
        os.chdir(scratch)
        reply(status=status, text=text, rss=rss())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
