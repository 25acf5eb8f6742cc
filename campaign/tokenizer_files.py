"""Hostile tokenizer.json files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from .mutate import broken_json, json_text, mutated_json, nested, shortened

PATTERNS = (
    "(a+)+$",
    "(a|a)*b",
    "(?:a?){500}a{500}",
    "(\\w+\\s?)*!",
    "a{1,1000}{1,1000}",
    "((a{1,100}){1,100}){1,100}",
    "(" * 300 + "a" + ")" * 300,
    "(?<=a+)b",
    "[",
    "",
    "\\p{L}" * 2000,
    "(?i)" + "x" * 100_000,
    "$",
    "(?=a)",
)


def mutate_tokenizer(file: Path, random: Random) -> str:
    """Change the file; returns what, in words."""
    data = json.loads(file.read_bytes())
    kind = random.random()
    if kind < 0.1:
        text, words = broken_json(random, file.read_bytes())
        file.write_bytes(text)
        return words
    if kind < 0.4:
        part = random.choice([k for k in data if isinstance(data[k], dict | list) and data[k]])
        value, words = mutated_json(random, data, (part,))
    elif kind < 0.5:
        value, words = mutated_json(random, data)
    else:
        value, words = data, random.choice(CHANGES)(data, random)
    file.write_bytes(json_text(value))
    return words


def _pattern(data: Any, random: Random) -> str:
    pattern = {random.choice(("Regex", "Regex", "String")): random.choice(PATTERNS)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": random.random() < 0.5}
    if random.random() < 0.5:
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split] * random.choice((1, 20))}
    else:
        content = random.choice(("", " ", "xy"))
        data["normalizer"] = {"type": "Replace", "pattern": pattern, "content": content}
    return f"pattern {shortened(pattern)}"


def _nested(data: Any, random: Random) -> str:
    depth = random.choice((20, 100, 400))
    part, key, name = random.choice(
        (("normalizer", "normalizers", "Sequence"), ("pre_tokenizer", "pretokenizers", "Sequence"))
    )
    value: Any = {"type": "Lowercase"} if part == "normalizer" else {"type": "Whitespace"}
    for _ in range(depth):
        value = {"type": name, key: [value]}
    data[part] = value
    return f"{part} nested {depth} deep"


def _growing(data: Any, random: Random) -> str:
    """Normalizers that double the text, over and over."""
    times = random.choice((3, 20, 40))
    kind = random.choice(("replace", "prepend", "nfkd"))
    step = {
        "replace": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
        "prepend": {"type": "Prepend", "prepend": "aaaa"},
        "nfkd": {"type": "NFKD"},
    }[kind]
    data["normalizer"] = {"type": "Sequence", "normalizers": [step] * times}
    return f"{times} times {kind}"


def _added_tokens(data: Any, random: Random) -> str:
    content = random.choice(("", "a", " ", "a" * 100_000, "\0", "<|endoftext|>"))
    token = {
        **{key: random.random() < 0.5 for key in ("single_word", "lstrip", "rstrip", "normalized", "special")},
        "id": random.choice((0, 5, 10**6, 2**31, 2**32 - 1)),
        "content": content,
    }
    data["added_tokens"] = [*data.get("added_tokens", []), *[token] * random.choice((1, 2000))]
    return f"added token {shortened(content, 20)} with id {token['id']}"


def _vocabulary(data: Any, random: Random) -> str:
    vocab = data["model"]["vocab"]
    kind = random.choice(("huge id", "negative id", "same ids", "empty", "many", "long"))
    key = random.choice(sorted(vocab))
    if kind == "huge id":
        vocab[key] = random.choice((2**31, 2**32 - 1, 2**32, 49_408))
    elif kind == "negative id":
        vocab[key] = -1
    elif kind == "same ids":
        data["model"]["vocab"] = dict.fromkeys(vocab, 0)
    elif kind == "empty":
        data["model"]["vocab"] = {}
    elif kind == "many":
        vocab.update({f"t{i}": 10_000 + i for i in range(300_000)})
    else:
        vocab["x" * 1_000_000] = len(vocab)
    return f"vocabulary: {kind}"


def _merges(data: Any, random: Random) -> str:
    model = data["model"]
    merge = random.choice(("a b", ["a", "b"], "a", ["a"], ["a", "b", "c"], "", [1, 2], "x y z"))
    model["merges"] = [*model.get("merges", []), merge] * random.choice((1, 50))
    return f"merges: {shortened(merge)}"


def _template(data: Any, random: Random) -> str:
    template = [{"Sequence": {"id": "A", "type_id": 0}}] * random.choice((0, 1, 1000))
    data["post_processor"] = random.choice(
        (
            {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": {}},
            {"type": "Sequence", "processors": [data.get("post_processor")] * 50},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 10**6]},
            None,
        )
    )
    return f"post_processor {shortened(data['post_processor'])}"


def _sizes(data: Any, random: Random) -> str:
    number = random.choice((0, 1, 2**31, 2**62, -1))
    if random.random() < 0.5:
        strategy = random.choice(({"Fixed": number}, "BatchLongest"))
        data["padding"] = {
            "strategy": strategy,
            "direction": "Left",
            "pad_to_multiple_of": number,
            "pad_id": 2**32 - 1,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    else:
        data["truncation"] = {"direction": "Right", "max_length": number, "strategy": "LongestFirst", "stride": number}
    return f"padding or truncation with {number}"


def _model(data: Any, random: Random) -> str:
    name = random.choice(("WordPiece", "WordLevel", "Unigram", "BPE", "Nonsense"))
    vocab = data["model"]["vocab"]
    data["model"] = {
        "WordPiece": {
            "type": "WordPiece",
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": random.choice((0, 2**62)),
            "vocab": vocab,
        },
        "WordLevel": {"type": "WordLevel", "vocab": vocab, "unk_token": random.choice(("a", "none"))},
        "Unigram": {"type": "Unigram", "unk_id": random.choice((0, 10**6)), "vocab": [["a", -1.0], ["", 0.0]]},
        "BPE": {**data["model"], "dropout": random.choice((0.5, 1.0, -1, 1e9)), "unk_token": "none"},
        "Nonsense": {"type": "Nonsense", "vocab": nested(100)},
    }[name]
    return f"model {name}"


CHANGES = (
    _pattern,
    _pattern,
    _pattern,
    _nested,
    _growing,
    _added_tokens,
    _vocabulary,
    _merges,
    _template,
    _sizes,
    _model,
)
