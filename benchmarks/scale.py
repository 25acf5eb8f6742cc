"""The table of docs/scale.md: hours, gigabytes and euros of the full recipes, by `rcdeploy estimate`.

    python benchmarks/scale.py

Nothing is measured here. Prices are assumed; so is the network between nodes, of which the estimate knows nothing: a
ring sends and receives the gradients almost twice in each step, and nothing of that is hidden behind computing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy.estimate.estimate import estimate
from rcdeploy.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parent.parent
EUROS_AN_HOUR = {"rtx-3090": 0.25, "rtx-4090": 0.40, "a100-40g": 1.30, "h100": 2.50}
"""of one GPU, rented. Assumed"""
NETWORK_BYTES_PER_SECOND = 100e9 / 8
"""between two nodes: 100 Gbit/s. Assumed"""


@dataclass(frozen=True)
class Row:
    """nodes: machines with as many GPUs each; title: of the hardware."""

    recipe: str
    device: str
    gpus: int
    title: str
    nodes: int = 1


ROWS = [
    Row("sd15_one_gpu", "rtx-4090", 1, "1 x RTX 4090"),
    Row("sd15_one_gpu", "rtx-3090", 1, "1 x RTX 3090"),
    *(
        row
        for recipe in ("b_tiny", "c_micro")
        for row in (
            Row(recipe, "rtx-4090", 1, "1 x RTX 4090"),
            Row(recipe, "a100-40g", 4, "4 x A100 40 GB"),
            Row(recipe, "h100", 8, "8 x H100"),
            Row(recipe, "h100", 16, "2 nodes of 8 x H100", nodes=2),
        )
    ),
]
HEADINGS = (
    "recipe",
    "hardware",
    "latent cache",
    "training",
    "network",
    "in all",
    "peak memory of a GPU",
    "disk",
    "euros",
)


def cells(row: Row) -> list[str]:
    """The row's cells, without its recipe and hardware."""
    recipe = load_recipe(ROOT / f"recipes/{row.recipe}.toml", check_files=False)
    result: dict[str, Any] = estimate(recipe, row.device, processes=row.gpus)
    hours = {stage["stage"]: stage["seconds"] / 3600 for stage in result["stages"]}
    network = 0.0
    if row.nodes > 1:
        sent = 2 * result["memory"]["gradients"] * (row.gpus - 1) / row.gpus
        network = recipe.train.max_steps * sent / NETWORK_BYTES_PER_SECOND / 3600
    total = result["total"]["seconds"] / 3600 + network
    memory = result["memory"]
    return [
        text(hours["latent cache"]),
        text(hours["training"]),
        text(network) if network else "",
        text(total),
        f"{memory['peak'] / 1e9:.1f} of {memory['device'] / 1e9:.0f} GB",
        f"{result['total']['disk_bytes'] / 1e9:.0f} GB",
        f"{round(total * row.gpus * EUROS_AN_HOUR[row.device], -1):,.0f}",
    ]


def text(hours: float) -> str:
    return f"{hours:,.1f} h" if hours < 10 else f"{hours:,.0f} h"


def main() -> None:
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|")
    for row in ROWS:
        print(f"| {' | '.join([row.recipe, row.title, *cells(row)])} |", flush=True)


if __name__ == "__main__":
    main()
