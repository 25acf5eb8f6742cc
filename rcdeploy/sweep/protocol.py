"""Under which conditions a table was measured: p(t) of its variants, the scored texts, what its seeds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcdeploy_runtime.manifest import NAME

from ..conditioning import formula
from ..evaluate.prompt_choice import choose_prompts
from ..prompts.pool import PromptPool
from ..prompts.readers import batches, files_of
from ..recipe import WORDNET
from .plan import Plan

MAX_TRAINING_TEXTS = 3_000_000
"""texts that are compared with the scored ones: more take minutes at every table"""


def protocol(plan: Plan) -> dict[str, Any]:
    """{"p_of_t": {label: formula}, "captions", "captions_in_training" (None: not compared), "shared_cache"}."""
    prompts = set(choose_prompts(plan.evaluation_spec))
    return {
        "p_of_t": {v.label: formula(v.trials[0].recipe.conditioning) for v in plan.variants},
        "captions": len(prompts),
        "captions_in_training": _in_training(plan, prompts),
        "shared_cache": plan.sweep.shared_cache,
    }


def _in_training(plan: Plan, prompts: set[str]) -> int | None:
    """How many of the scored prompts stand in a file or pool that a recipe of the table names."""
    found: set[str] = set()
    compared = 0
    for source, column in _training_sources(plan):
        if source == WORDNET:
            return None
        if (Path(source) / NAME).is_file():
            with PromptPool.open(Path(source)) as pool:
                compared += len(pool)
                if compared > MAX_TRAINING_TEXTS:
                    return None
                found.update(text for text in pool if text in prompts)
            continue
        for rows in batches(files_of(Path(source)), column):
            compared += len(rows)
            if compared > MAX_TRAINING_TEXTS:
                return None
            found.update(prompts.intersection(" ".join(row.split()) for row in rows))
    return len(found)


def _training_sources(plan: Plan) -> list[tuple[str, str | None]]:
    """(file, folder or "wordnet"; column of captions) of prompts.paired and prompts.pool, each once."""
    sections = [variant.trials[0].recipe.prompts for variant in plan.variants]
    return list(dict.fromkeys((source, s.column) for s in sections for source in (*s.paired, *s.pool)))


def sentences(record: dict[str, Any], seeds: int) -> str:
    """The paragraph of a table's Markdown. record: as `protocol` returns it."""
    labels: dict[str, list[str]] = {}
    for label, p in record["p_of_t"].items():
        labels.setdefault(p, []).append(f'"{label}"')
    if len(labels) == 1:
        text = [f"p(t) is {next(iter(labels))} in all variants."]
    else:
        text = ["p(t) is " + "; ".join(f"{p} in {', '.join(names)}" for p, names in labels.items()) + "."]
    count = record["captions_in_training"]
    if count is not None:
        share = f"{count} of the {record['captions']:,}" if count else f"None of the {record['captions']:,}"
        text.append(f"{share} scored captions {'is' if count == 1 else 'are'} among the texts of training.")
    if seeds > 1 and record["shared_cache"]:
        text.append(
            "The seeds share one latent cache and the start noise of the scored images: spreads are narrower than "
            "those of independent repetitions."
        )
    elif seeds > 1:
        text.append("Each seed has a latent cache and start noise of its own; they share the scored captions.")
    return " ".join(text)


def formulas_in_short(record: dict[str, Any]) -> str:
    """Every p(t) of a table in a line, for its plot; where there are many, the variants' names have to say it."""
    formulas = list(dict.fromkeys(record["p_of_t"].values()))
    return f"p(t): {' or '.join(formulas)}" if len(formulas) <= 3 else "p(t): as the variants are named"
