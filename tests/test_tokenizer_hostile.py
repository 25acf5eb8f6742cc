"""Tokenizers from strangers: patterns that search without an end are refused, those of real tokenizers load."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from rcdeploy_runtime import RcdeployError
from rcdeploy_runtime.limits import MAX_PATTERN_CHARACTERS, MAX_PROMPT_CHARACTERS
from rcdeploy_runtime.tokenizer import PromptTokenizer
from rcdeploy_runtime.tokenizer_checks import pattern_problem

CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
KNOWN = {
    "clip": CLIP,
    "converted clip": rf"<\|startoftext\|>|<\|endoftext\|>|{CLIP}",
    "white space": r"\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "spaces": " {2,}",
}
# with 10,000 characters each took more than two seconds, or ran into oniguruma's own limit
HANGING = [r"(a+)+b", r"a+a+b", r"a+a+a+b", r"a+b", r"(?<=a)a+b", r"(a+)\1b", r"(?<x>a|a\g<x>\g<x>)b", "a?" * 25 + "b"]
HANGING += [r"a{1,999}a{1,999}b", r"(?:a|aa)+b", r"\s*\s*\s*x", r"[\p{L}]+x"]
OTHERS = [r"a{2}{3}", r"a+?", r"a++", r"^a", r"a$", r"\bx", r"[[a]b]", r"a{1000}", r"\s+(?!\S)x", r"a+(?!\S)", "(?!a)"]
OTHERS += ["[a", "a)", r"(?i:a)", r"\x{41}", "a" * (MAX_PATTERN_CHARACTERS + 1)]


@pytest.fixture
def folder(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package / "tokenizer", tmp_path / "tokenizer"))


def change(folder: Path, **sections: Any) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **sections}))


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}


@pytest.mark.parametrize("pattern", KNOWN.values(), ids=KNOWN)
def test_patterns_of_real_tokenizers(folder: Path, pattern: str) -> None:
    assert pattern_problem(pattern) is None
    change(folder, pre_tokenizer=split(pattern))
    tokenizer = PromptTokenizer(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such prompts are cut
        assert all(tokenizer([c * MAX_PROMPT_CHARACTERS]).shape == (1, tokenizer.context) for c in "a '")


@pytest.mark.parametrize("pattern", HANGING + OTHERS)
def test_patterns_that_may_hang_are_refused(pattern: str) -> None:
    assert pattern_problem(pattern)


@pytest.mark.parametrize("pattern", HANGING[:2])
@pytest.mark.parametrize("section", ["normalizer", "pre_tokenizer", "decoder"])
def test_they_are_found_wherever_they_stand(folder: Path, section: str, pattern: str) -> None:
    part = split(pattern)
    if section != "pre_tokenizer":
        part = {"type": "Replace", "pattern": {"Regex": pattern}, "content": " "}
    change(folder, **{section: {"type": "Sequence", f"{section}s": [part]}})
    with pytest.raises(RcdeployError, match="is refused") as caught:
        PromptTokenizer(folder)
    assert "tokenizer.json" in caught.value.message and "CLIP" in str(caught.value.fix)


def test_two_values_of_one_key(folder: Path) -> None:
    """Whatever is checked is what is used."""
    text = json.dumps(split(CLIP)).replace('{"Regex": ', '{"Regex": "(a+)+b", "Regex": ')
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "pre_tokenizer": "HERE"}).replace('"HERE"', text))
    PromptTokenizer(folder)(["aaaa " * 5])


def test_a_table_of_any_text_is_refused(folder: Path) -> None:
    change(
        folder, normalizer={"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": ""}]}
    )
    with pytest.raises(RcdeployError, match="more text than any"):
        PromptTokenizer(folder)
