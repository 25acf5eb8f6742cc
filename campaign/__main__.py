"""Runs the campaign: seeded, bounded attempts of every family, and a table of how they ended.

python -m campaign --attempts 2000 --jobs 2              # all of it
python -m campaign --family packages --attempts 100      # one family
python -m campaign --only packages:17 --seed 0           # one attempt again
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rcdeploy_runtime.files import replacing

from .attempts import FAILED, Attempt, Outcome
from .families import FAMILIES
from .journal import Journal
from .materials import make_materials
from .runner import ROOT, run_attempts
from .table import Effort, failures, page, sentence, table


def plan(seed: int, count: int, families: Sequence[str]) -> list[Attempt]:
    """`count` attempts or a few more, shared among the families, of each at least one."""
    shares = sum(FAMILIES[name].share for name in families)
    sizes = {name: max(1, -(-count * FAMILIES[name].share // shares)) for name in families}
    return [Attempt(name, number, seed) for name in FAMILIES if name in families for number in range(sizes[name])]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m campaign", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempts", type=int, default=2000, help="in all, over the families")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at once")
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--only", nargs="+", metavar="FAMILY:NUMBER", help="these attempts alone")
    parser.add_argument("--docs", action="store_true", help="write results/campaign.md")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="note outcomes there, and repeat none that it has")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave what attempts left")
    options = parser.parse_args(arguments)
    for name in options.only or ():
        family, _, number = name.partition(":")
        if family not in FAMILIES or not number.isdigit():
            parser.error(f"--only {name}: write it as FAMILY:NUMBER, with one of {', '.join(FAMILIES)}")
    return options


def run(
    attempts: Sequence[Attempt], jobs: int, folder: Path, journal: Journal | None = None, verbose: bool = False
) -> list[Outcome]:
    """Run attempts in `folder`, which is empty; prints failures as they come."""
    materials = make_materials(folder / "materials")
    done = 0

    def report(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if journal:
            journal.note(outcome)
        if verbose or outcome.status == FAILED:
            text = f"{outcome.status}, {outcome.seconds:.1f} s: {sentence(outcome)}"
            print(text.encode("ascii", "backslashreplace").decode(), flush=True)
        if done % 100 == 0:
            print(f"{done} of {len(attempts)} attempts", flush=True)

    return run_attempts(attempts, materials, folder, jobs, report)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    attempts = plan(options.seed, options.attempts, options.family)
    if options.only:
        names = (name.partition(":") for name in options.only)
        attempts = [Attempt(family, int(number), options.seed) for family, _, number in names]
    journal = Journal(options.resume)
    missing = [attempt for attempt in attempts if attempt not in journal.outcomes]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as temporary:
        folder = options.keep or Path(temporary) / "room"
        folder.mkdir(parents=True)
        try:
            run(missing, options.jobs, folder, journal, verbose=bool(options.only))
        finally:
            journal.add(_effort(started, options.jobs))
    outcomes = [journal.outcomes[attempt] for attempt in attempts]
    print("\n".join([*table(outcomes), "", *failures(outcomes)]).encode("ascii", "backslashreplace").decode())
    print(f"{journal.effort.wall / 60:.1f} minutes, {journal.effort.cpu / 60:.1f} of processor time")
    if options.docs:
        with replacing(ROOT / "results/campaign.md") as beside:
            command = f"python -m campaign --seed {options.seed} --attempts {options.attempts} --docs"
            beside.write_text(page(outcomes, command, options.seed, journal.effort), encoding="utf-8")
    return int(any(outcome.status == FAILED for outcome in outcomes))


def _effort(started: float, jobs: int) -> Effort:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    return Effort(time.monotonic() - started, cpu, jobs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
