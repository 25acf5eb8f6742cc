"""Does a student learn concepts without a cached latent? The paper's Fig. 2 and Table 2 in miniature.

    python examples/unseen_concepts.py                  # three seeds, both recipes: 20 minutes on two cores

Three items (sandal, sneaker, boot) have no cached latent. One student is distilled without random conditioning, one
with it: it meets those items in captions of the prompt pool only. The judge then classifies new images of seen and
unseen items. Writes results/unseen_concepts.{json,md,png}; --docs puts the table and the image into
docs/science/unseen-concepts.md. Stopped or killed, the same command continues.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffusers import UNet2DConditionModel

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.judge import Judge
from rcdeploy.plots import grid
from rcdeploy.recipe_file import load_recipe
from rcdeploy.sampling import sample_images, starting_noise
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("without", "with")
UNSEEN = ("sandal", "sneaker", "boot")
GRID_PROMPTS = [
    "a photo of a red sandal on a white background",
    "a photo of a white sneaker on a blue background",
    "a photo of a purple boot on a yellow background",
    "a photo of a large green sneaker on a pink background",
    "a photo of a blue boot on a pink background",
    "a photo of a yellow dress on a purple background",
    "a photo of a teal coat on a white background",
    "a photo of a pair of blue trousers on a yellow background",
]


def distill(kind: str, seed: int, args: argparse.Namespace, threads: int) -> Path:
    """Run a distillation in a process of its own: it has its own threads, and a failure stops one run only."""
    run = args.runs / f"fashion_unseen_{kind}-{seed}"
    settings = [f"train.seed={seed}", f"student.seed={seed}", *args.set]
    command = [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(recipe_file(kind)), "--out", str(run), "-q"]
    command += [argument for setting in settings for argument in ("--set", setting)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    print(f"{kind} random conditioning, seed {seed}: done", flush=True)
    return run


def recipe_file(kind: str) -> Path:
    return ROOT / "recipes" / f"fashion_unseen_{kind}.toml"


def test_prompts(captions: list[str], count: int) -> dict[str, list[str]]:
    rng = random.Random(1234)
    unseen = [c for c in captions if any(item in c for item in UNSEEN)]
    seen = [c for c in captions if not any(item in c for item in UNSEEN)]
    return {"seen": rng.sample(seen, count), "unseen": rng.sample(unseen, count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--images",
        "--pictures",
        type=int,
        default=300,
        help="that the judge classifies, of seen and of unseen items each",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, one thread each when there are more")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--docs", action="store_true", help="put both into docs/science/unseen-concepts.md")
    args = parser.parse_args()

    recipe = load_recipe(recipe_file("with"), args.set)
    # the cache is shared: fill it once, with every core
    command = [sys.executable, "-m", "rcdeploy.cli.main", "cache", str(recipe_file("without"))]
    subprocess.run(command + [argument for s in args.set for argument in ("--set", s)], check=True)
    trials = [(kind, seed) for seed in range(args.seeds) for kind in KINDS]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(trials, pool.map(lambda trial: distill(*trial, args, threads), trials), strict=True))

    teacher = LatentDiffusionModel(recipe.teacher.path)
    judge = Judge.load(Path(recipe.teacher.path) / "judge")
    captions = all_captions(Path(recipe.prompts.paired[0]))
    prompts = test_prompts(captions, args.images)
    models = {("teacher", 0): None} | {
        trial: UNet2DConditionModel.from_pretrained(run / "pipeline", subfolder="unet").eval()
        for trial, run in runs.items()
    }
    scale = recipe.cache.guidance_scale
    scores = score_models(models, teacher, judge, prompts, scale)
    noise = starting_noise(7, range(len(GRID_PROMPTS)), teacher.latent_shape())
    compared = (
        ("teacher", None),
        ("without random conditioning", models["without", 0]),
        ("with random conditioning", models["with", 0]),
    )
    samples = [
        (name, sample_images(teacher, GRID_PROMPTS, noise, unet=u, guidance_scale=scale)) for name, u in compared
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    grid(samples, GRID_PROMPTS, args.out / "unseen_concepts.png", image_size=110)
    write_json(args.out / "unseen_concepts.json", {"recipe": recipe.resolved()["train"], "scores": scores})
    text = table(scores)
    (args.out / "unseen_concepts.md").write_text(text)
    print(text)
    if args.docs:
        image = "![teacher, student without, student with](../../results/unseen_concepts.png)\n"
        replace_between_markers(ROOT / "docs/science/unseen-concepts.md", f"{text}\n{image}")


def score_models(
    models: dict[tuple[str, int], UNet2DConditionModel | None],
    teacher: LatentDiffusionModel,
    judge: Judge,
    prompts: dict[str, list[str]],
    guidance_scale: float,
) -> dict[str, list[dict[str, float]]]:
    """The judge's accuracy for each kind of model, by seed. models: (kind, seed) -> UNet, None for the teacher's."""
    scores: dict[str, list[dict[str, float]]] = {}
    for (kind, seed), unet in models.items():
        row = {}
        for group, group_prompts in prompts.items():
            noise = starting_noise(99, range(len(group_prompts)), teacher.latent_shape())
            images = sample_images(
                teacher, group_prompts, noise, unet=unet, batch_size=50, guidance_scale=guidance_scale
            )
            verdicts = judge.verdicts(images, group_prompts)
            row |= {f"{group} {name}": verdict.float().mean().item() for name, verdict in verdicts.items()}
        scores.setdefault(kind, []).append(row)
        print(kind, seed, {k: round(v, 3) for k, v in row.items()}, flush=True)
    return scores


def all_captions(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds in per cent, and from lowest to highest."""
    names = {"teacher": "teacher", "without": "student without random conditioning", "with": "student with it"}
    columns = ("unseen item", "unseen colour", "seen item", "seen colour", "seen background")
    lines = ["| judged right, % | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for kind, rows in scores.items():
        values_of_row = []
        for column in columns:
            values = [100 * row[column] for row in rows]
            spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
            values_of_row.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {names[kind]} | " + " | ".join(values_of_row) + " |")
    return "\n".join(lines) + "\n"


def replace_between_markers(page: Path, new: str) -> None:
    begin = "<!-- unseen concepts: begin -->\n"
    end = "<!-- unseen concepts: end -->"
    text = page.read_text()
    head, rest = text.split(begin)
    page.write_text(head + begin + new + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
