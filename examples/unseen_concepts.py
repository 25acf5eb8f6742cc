"""Does a student learn concepts without a cached latent? The paper's Fig. 2 and Table 2 in miniature.

    python examples/unseen_concepts.py                  # three seeds, both recipes: 25 minutes on two cores

Three items (sandal, sneaker, boot) have no cached latent. One student is distilled without random conditioning, one
with it: it meets those items in captions of the prompt pool only. The judge then classifies new images of seen and
unseen items, of held-out scenes, whose captions are in neither cache nor pool. Each seed has its own latent cache and
its own start noise. A difference between the two students is called one where two tests agree, as in rcdeploy sweep:
exact McNemar, paired by caption, and the t test of the seeds' differences.

Writes results/unseen_concepts.{json,md,png}; --docs puts the table and the image into docs/science/unseen-concepts.md.
Stopped or killed, the same command continues.
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
from torch import Tensor

from rcdeploy.conditioning import formula
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.judge import Judge
from rcdeploy.plots import grid
from rcdeploy.recipe_file import load_recipe
from rcdeploy.sampling import sample_images, starting_noise
from rcdeploy.sweep.comparison import CaptionValues, paired_p
from rcdeploy.sweep.table import MARK
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ROOT / "examples/teachers/fashion/captions_held_out.txt.gz"
KINDS = ("without", "with")
COLUMNS = ("unseen item", "unseen colour", "seen item", "seen colour", "seen background")
SIGNIFICANCE = 0.05
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
    settings = [f"train.seed={seed}", f"student.seed={seed}", f"cache.seed={seed}", *args.set]
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
    for seed in range(args.seeds):  # both students of a seed share its cache: fill it once, with every core
        command = [sys.executable, "-m", "rcdeploy.cli.main", "cache", str(recipe_file("without"))]
        settings = [f"cache.seed={seed}", *args.set]
        subprocess.run(command + [argument for s in settings for argument in ("--set", s)], check=True)
    trials = [(kind, seed) for seed in range(args.seeds) for kind in KINDS]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(trials, pool.map(lambda trial: distill(*trial, args, threads), trials), strict=True))

    teacher = LatentDiffusionModel(recipe.teacher.path)
    judge = Judge.load(Path(recipe.teacher.path) / "judge")
    captions = all_captions(HELD_OUT)
    prompts = test_prompts(captions, args.images)
    models = {("teacher", 0): None} | {
        trial: UNet2DConditionModel.from_pretrained(run / "pipeline", subfolder="unet").eval()
        for trial, run in runs.items()
    }
    scale = recipe.cache.guidance_scale
    verdicts = score_models(models, teacher, judge, prompts, scale)
    scores = {kind: [{n: v.float().mean().item() for n, v in row.items()} for row in r] for kind, r in verdicts.items()}
    p_values = test_differences(verdicts)
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
    p_of_t = formula(recipe.conditioning)
    record = {"recipe": recipe.resolved()["train"], "p_of_t": p_of_t, "scores": scores, "p_values": p_values}
    write_json(args.out / "unseen_concepts.json", record)
    text = table(scores, p_values) + "\n" + note(p_of_t, p_values)
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
) -> dict[str, list[dict[str, Tensor]]]:
    """What the judge reads right [n], for each kind of model, by seed. models: (kind, seed) -> UNet, None: teacher."""
    verdicts_of: dict[str, list[dict[str, Tensor]]] = {}
    for (kind, seed), unet in models.items():
        row: dict[str, Tensor] = {}
        for group, group_prompts in prompts.items():
            noise = starting_noise(99 + seed, range(len(group_prompts)), teacher.latent_shape())
            images = sample_images(
                teacher, group_prompts, noise, unet=unet, batch_size=50, guidance_scale=guidance_scale
            )
            verdicts = judge.verdicts(images, group_prompts)
            row |= {f"{group} {name}": verdict for name, verdict in verdicts.items()}
        verdicts_of.setdefault(kind, []).append(row)
        print(kind, seed, {k: round(v.float().mean().item(), 3) for k, v in row.items()}, flush=True)
    return verdicts_of


def test_differences(verdicts: dict[str, list[dict[str, Tensor]]]) -> dict[str, float]:
    """p of no difference between the two students by column, the larger of both tests'; {} with one seed."""
    without, with_it = (verdicts[kind] for kind in KINDS)
    if len(without) < 2:
        return {}
    return {
        name: paired_p(
            [
                (CaptionValues(a[name].double(), is_share=True), CaptionValues(b[name].double(), is_share=True))
                for a, b in zip(without, with_it, strict=True)
            ]
        )
        for name in COLUMNS
    }


def all_captions(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def table(scores: dict[str, list[dict[str, float]]], p_values: dict[str, float]) -> str:
    """Means over seeds in per cent, from lowest to highest, and a mark where the two students differ."""
    names = {"teacher": "teacher", "without": "student without random conditioning", "with": "student with it"}
    lines = ["| judged right, % | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for kind, rows in scores.items():
        values_of_row = []
        for column in COLUMNS:
            values = [100 * row[column] for row in rows]
            spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
            mark = MARK * (kind == "with" and p_values.get(column, 1) < SIGNIFICANCE)
            values_of_row.append(f"{statistics.mean(values):.1f}{spread}{mark}")
        lines.append(f"| {names[kind]} | " + " | ".join(values_of_row) + " |")
    return "\n".join(lines) + "\n"


def note(p_of_t: str, p_values: dict[str, float]) -> str:
    """The paragraph below the table."""
    text = [f"p(t) of the student with random conditioning: {p_of_t}.", "None of the scored captions was in training."]
    if p_values:
        text.append(
            f"{MARK.strip()} differs from the student without it (p < {SIGNIFICANCE}): by exact McNemar, paired by "
            "caption, and by the t test of the seeds' differences."
        )
    return " ".join(text) + "\n"


def replace_between_markers(page: Path, new: str) -> None:
    begin = "<!-- unseen concepts: begin -->\n"
    end = "<!-- unseen concepts: end -->"
    text = page.read_text()
    head, rest = text.split(begin)
    page.write_text(head + begin + new + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
