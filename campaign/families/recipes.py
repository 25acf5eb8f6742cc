"""Recipes with values that do not belong: refused with sentences before work begins, or they mean something."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from pathlib import Path
from random import Random
from typing import Any

from ..attempts import Failed, Family, Place
from ..commands import copy_inputs
from ..mutate import ODD_NUMBERS, ODD_TEXTS, harmed, odd_value, shortened

MORE = {
    "student": {"name": "c-micro", "width": 0.5, "init": "random", "seed": 1},
    "prompts": {"per_noun": 4, "column": "caption", "paired_exclude": ["cat"], "paired_count": 8},
    "cache": {"source": "teacher", "guidance_scale": 7.5, "resolution": 64, "seed": 1},
    "conditioning": {"probability": "sigmoid", "rate": 5.0, "steepness": 20.0, "centre": 0.7, "constant": 0.5},
    "loss": {"output": 1.0, "feature": 1.0, "task": 0.0},
    "train": {"micro_batch_size": 2, "warmup_steps": 1, "adam_beta1": 0.9, "weight_decay": 0.01, "ema_decay": 0.99},
    "evaluate": {"score": "validation", "keep": "last", "count": 4, "guidance_scale": 7.5, "seed": 3},
}
"""keys that the small recipe leaves out: each may come in"""
SIZES = {
    *("paired_count", "per_noun", "num_inference_steps", "resolution", "batch_size", "shard_size", "max_steps"),
    *("global_batch_size", "micro_batch_size", "count", "validation_size", "every", "width", "source", "images"),
    *("checkpoint_every", "keep_checkpoints", "log_every", "paired", "pool", "path", "folder", "trackers"),
}
"""keys that decide how long a run takes, or where it lies: a recipe in which one was changed is not run"""


def run(place: Place, random: Random) -> None:
    copy_inputs(place.materials, place.folder)
    small = tomllib.loads(Path("recipe.toml").read_text())
    small["prompts"]["pool"] = ["further.txt"]
    small["evaluate"]["every"] = 0
    small["train"]["max_steps"] = 2
    kind = random.random()
    if kind < 0.15:
        text, words = harmed(random, toml(small))
        changed = None
    elif kind < 0.45:
        data, words, changed = _mutated(random, _shipped(random))
        changed, text = None, toml(data)
    else:
        data, words, changed = _mutated(random, small)
        text = toml(data)
    overrides = _overrides(random) if random.random() < 0.15 else []
    Path("mutated.toml").write_bytes(text)
    place.describe(f"{words}{f'; --set {shortened(overrides)}' if overrides else ''}")
    _check(Path("mutated.toml"), overrides, will_run=changed is not None and not changed & SIZES and not overrides)


def _check(file: Path, overrides: list[str], *, will_run: bool) -> None:
    """Load a recipe, and run it when that takes no time."""
    from rcdeploy.recipe_file import load_recipe

    recipe = load_recipe(file, overrides)
    for section, keys in recipe.resolved().items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise Failed(f"{section}.{key} = {value} was accepted")
    json.dumps(recipe.resolved(), allow_nan=False).encode()
    if (Path("runs") / recipe.name).resolve().parent != Path("runs").resolve():
        raise Failed(f"the name {recipe.name!r} leads out of runs/")
    if not will_run:
        return
    from rcdeploy.distill.loop import distill

    distill(recipe, Path("runs") / recipe.name, lambda *_: None, lambda _text: None)
    if not (Path("runs") / recipe.name / "pipeline" / "model_index.json").is_file():
        raise Failed("the run ended and left no pipeline")


def _shipped(random: Random) -> dict[str, Any]:
    """A shipped recipe with the small teacher in its place."""
    from rcdeploy.recipe_file import shipped_recipes

    data = tomllib.loads(random.choice(shipped_recipes()).read_text())
    data["teacher"] = {"path": "teacher"}
    data["prompts"] = {**data["prompts"], "paired": ["paired.txt"], "pool": ["further.txt"]}
    return data


def _mutated(random: Random, recipe: dict[str, Any]) -> tuple[dict[str, Any], str, set[str]]:
    """-> (recipe, words, the keys that were changed)"""
    data = copy.deepcopy(recipe)
    words, keys = [], set()
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        section = random.choice([name for name in data if isinstance(data[name], dict)] or ["train"])
        known = {**MORE.get(section, {}), **data.get(section, {})}
        key = random.choice(sorted(known))
        kind = random.random()
        if kind < 0.08:
            data[section] = odd_value(random, data[section])
            words.append(f"[{section}] = {shortened(data[section])}")
            keys.add("path")
        elif kind < 0.16:
            name = random.choice((key + "s", key.upper(), "", "__class__", "a.b", "\U0001f600", "x" * 5000))
            data[section][name] = known[key]
            words.append(f"{section}.{shortened(name)} = {shortened(known[key])}")
        elif kind < 0.24:
            data["name"] = random.choice((*ODD_TEXTS, ".", "..", "a/b", "a b", "-x", "nul", "x" * 101))
            words.append(f"name = {shortened(data['name'])}")
        else:
            number = isinstance(known[key], int | float) and random.random() < 0.7
            data[section][key] = random.choice(ODD_NUMBERS) if number else odd_value(random, known[key])
            words.append(f"{section}.{key} = {shortened(data[section][key])}")
            keys.add(key)
        if not isinstance(data[section], dict):
            break
    return data, ", ".join(words), keys


def _overrides(random: Random) -> list[str]:
    section = random.choice(sorted(MORE))
    key = random.choice(sorted(MORE[section]))
    value = _literal(odd_value(random, MORE[section][key]))
    return [random.choice((f"{section}.{key}={value}", f"{section}.{key}", f"{key}={value}", "=", f".{key}={value}"))]


def toml(data: dict[str, Any]) -> bytes:
    """A recipe as TOML; what TOML cannot say, such as null, becomes text that is no TOML."""
    lines = [f"{_key(k)} = {_literal(v)}" for k, v in data.items() if not isinstance(v, dict)]
    for section, keys in data.items():
        if isinstance(keys, dict):
            lines += ["", f"[{_key(section)}]", *(f"{_key(k)} = {_literal(v)}" for k, v in keys.items())]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else json.dumps(name, ensure_ascii=False)


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{value}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


FAMILY = Family("Recipes", run, share=200, seconds=60)
