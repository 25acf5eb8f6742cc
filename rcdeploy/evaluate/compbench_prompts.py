"""T2I-CompBench's prompts by category, which their files' names say. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from ..prompts.readers import batches

CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
"""of the benchmark's average (paper, Table D)"""
NETWORKS = {
    **dict.fromkeys(("color", "shape", "texture"), ("vqa",)),
    "spatial": ("detector",),
    "non_spatial": ("clip",),
    "complex": ("vqa", "detector", "clip"),
}
"""category -> the networks that its score is computed from"""
RELATIONS = ("spatial", "action")
"""complex_val_spatial.txt and complex_val_action.txt, beside complex_val.txt, list its prompts of one relation"""


def category_of(file: Path) -> str:
    """The category in a file's name: color_val.txt -> color. Raises RcdeployError for a name without one."""
    match = re.match(rf"({'|'.join(CATEGORIES)})(_\w+)?\.", file.name)
    if match is None:
        raise RcdeployError(
            f"compbench takes the category of prompts from their file's name, and {file.name} has none",
            fix="Name T2I-CompBench's own files, examples/dataset/color_val.txt and the like. The categories are "
            f"{', '.join(CATEGORIES)}.",
        )
    return match[1]


def networks_needed(files: Sequence[Path]) -> list[str]:
    """Those of NETWORKS that score the categories of these files."""
    return list(dict.fromkeys(name for file in files for name in NETWORKS[category_of(file)]))


@dataclass(frozen=True)
class CompbenchPrompts:
    """Prompts by category, and of complex ones those whose only relation is a place, or an action.

    by_category: prompts with their white space normalised. by_relation: as `_key` makes them.
    """

    by_category: dict[str, frozenset[str]]
    by_relation: dict[str, frozenset[str]]

    @classmethod
    def read(cls, files: Sequence[Path], column: str | None = None) -> CompbenchPrompts:
        """Raises RcdeployError for a file without a category, and for complex prompts without their relations."""
        by_category: dict[str, frozenset[str]] = {}
        by_relation: dict[str, frozenset[str]] = dict.fromkeys(RELATIONS, frozenset())
        for file in files:
            category = category_of(file)
            by_category[category] = by_category.get(category, frozenset()) | _prompts(file, column)
            if category == "complex":
                for relation in RELATIONS:
                    beside = _beside(file, relation)
                    by_relation[relation] |= {_key(prompt) for prompt in _prompts(beside, column)}
        return cls(by_category, by_relation)

    def relation(self, prompt: str) -> str | None:
        """The only relation of a complex prompt; None where it has several."""
        return next((name for name in RELATIONS if _key(prompt) in self.by_relation[name]), None)

    @property
    def digest(self) -> str:
        content = {name: sorted(prompts) for name, prompts in (*self.by_category.items(), *self.by_relation.items())}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _beside(file: Path, relation: str) -> Path:
    stem, _, extension = file.name.partition(".")
    beside = file.with_name(f"{stem}_{relation}.{extension}")
    if not beside.is_file():
        raise RcdeployError(
            f"{file} holds complex prompts, and there is no {beside.name} beside it",
            fix="T2I-CompBench has it in examples/dataset: the prompts whose only relation is "
            f"{'a place' if relation == 'spatial' else 'an action'}.",
        )
    return beside


def _prompts(file: Path, column: str | None) -> frozenset[str]:
    return frozenset(" ".join(row.split()) for rows in batches([file], column) for row in rows)


def _key(prompt: str) -> str:
    """By what the benchmark finds a prompt in its lists: up to the first full stop, in lower case."""
    return prompt.split(".")[0].lower()
