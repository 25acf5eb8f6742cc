"""The families of attempts. Those that fork come first: later ones start threads of libraries."""

from __future__ import annotations

from ..attempts import Family
from . import bit_flips, kills, network, packages, power_cuts, prompt_files, recipes, teachers, threads

FAMILIES: dict[str, Family] = {
    "kills": kills.FAMILY,
    "power-cuts": power_cuts.FAMILY,
    "threads": threads.FAMILY,
    "bit-flips": bit_flips.FAMILY,
    "teachers": teachers.FAMILY,
    "recipes": recipes.FAMILY,
    "prompt-files": prompt_files.FAMILY,
    "network": network.FAMILY,
    "packages": packages.FAMILY,
}
