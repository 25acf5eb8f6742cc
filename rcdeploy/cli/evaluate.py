"""rcdeploy evaluate"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from ..recipe import Evaluate
from .console import err, out, quieten_libraries, show_table, stages
from .options import QUIET

if TYPE_CHECKING:
    from ..evaluate.metrics import Weights
    from ..evaluate.reference import Progress
    from ..evaluate.source import Settings, Source


def evaluate_command(
    subject: str = typer.Argument(None, help="A run, a package or a diffusers folder; by default the newest run."),
    prompts: list[Path] = typer.Option(None, help="Files of prompts; by default the recipe's. Repeatable."),
    column: str | None = typer.Option(None, help="Of csv, jsonl and parquet files; found when not named."),
    count: int | None = typer.Option(
        None, min=0, help="So many of the prompts, drawn by the seed; 0: all. By default 1,000."
    ),
    repeat: int = typer.Option(1, min=1, help="Pictures of each prompt; T2I-CompBench draws 10."),
    include: list[str] = typer.Option(None, help="Only prompts with this word (regular expression); repeatable."),
    exclude: list[str] = typer.Option(None, help="No prompt with this word (regular expression); repeatable."),
    split: str | None = typer.Option(
        None, metavar="animals|FILE", help="Scores of prompts with and without these words too; a word a line."
    ),
    metrics: str = typer.Option("", metavar="fid,is,clip,vqa,judge", help="By default all that can be had."),
    inception: Path | None = typer.Option(None, help="Weights of Inception-v3 (.safetensors), for fid and is."),
    reference: Path | None = typer.Option(None, help="Real pictures, or their statistics (.safetensors, .npz)."),
    clip: Path | None = typer.Option(None, help="A CLIP model in transformers' layout; the paper's is ViT-g/14."),
    vqa: Path | None = typer.Option(None, help="A BLIP model that answers questions, in transformers' layout."),
    noun_phrases: Path | None = typer.Option(
        None, metavar="NAME|FOLDER", help="spaCy's pipeline that finds what vqa asks for; by default en_core_web_sm."
    ),
    judge: Path | None = typer.Option(None, help="A judge; by default the one in the teacher's folder."),
    checkpoint: str | None = typer.Option(None, metavar="best|last|STEP", help="EMA weights of a run's checkpoint."),
    seed: int | None = typer.Option(None, min=0, help="Picture i is what rcdeploy generate --seed SEED+i draws."),
    steps: int | None = typer.Option(None, min=1, help="DDIM steps; 25, or the recipe's."),
    guidance_scale: float | None = typer.Option(None, min=0, help="7.5, or the recipe's."),
    resize: int | None = typer.Option(
        None, min=0, help="Edge in pixels to score at; by default 256 of 512; 0: as drawn."
    ),
    folder: Path | None = typer.Option(None, "--out", "-o", help="By default evaluations/NAME-DIGEST."),
    pictures_to: Path | None = typer.Option(None, "--write-pictures", help="Pictures as PNGs here, for other tools."),
    allow_few: bool = typer.Option(False, "--allow-few", help="A Frechet distance of however few pictures."),
    batch_size: int = typer.Option(16, min=1, help="Pictures drawn at once."),
    shard_size: int = typer.Option(256, min=1, help="Pictures in a file."),
    device: str = typer.Option("auto", help="auto, cpu, cuda."),
    as_json: bool = typer.Option(False, "--json", help="What scores.json holds."),
    quiet: bool = QUIET,
) -> None:
    """Draw pictures by a model and score them: FID, IS, CLIP score, BLIP-VQA, a judge's accuracy.

    Pictures are drawn by DDIM at the model's own size and kept; whole shards stay, so the same command goes on after
    any interruption, and several machines that see one folder may run it at once.

    rcdeploy evaluate runs/c_micro --prompts metadata.csv --count 0 --inception inception.safetensors --reference real/
    rcdeploy evaluate packages/quickstart-onnx --prompts examples/teachers/fashion/captions.txt.gz --count 500

    --split animals gives Table 2's halves. Of Table D (T2I-CompBench) the first command gives colour, and shape and
    texture with their files of prompts, the second non-spatial, with CLIP's ViT-B/32:

    rcdeploy evaluate RUN --prompts color_val.txt --count 0 --repeat 10 --resize 0 --metrics vqa --vqa blip-vqa-base/
    rcdeploy evaluate RUN --prompts non_spatial_val.txt --count 0 --repeat 10 --resize 0 --metrics clip --clip vit-b-32/

    Spatial and complex need UniDet, which is in no library: --write-pictures DIR names pictures as T2I-CompBench's own
    evaluators expect, {prompt}_{number}.png.
    """
    quieten_libraries()
    from ..evaluate.evaluation import evaluate, identity_of, smaller, write_down, write_pictures
    from ..evaluate.image_set import folder_of, open_set
    from ..evaluate.metrics import choose_metrics, open_scorer, refuse_too_few
    from ..evaluate.prompt_choice import choose_prompts, halves
    from ..evaluate.source import open_source, torch_device

    named = {"inception": inception, "clip": clip, "vqa": vqa, "judge": judge, "reference": reference}
    _refuse_missing(named)
    named["noun_phrases"] = noun_phrases  # perhaps the name of a package
    source = open_source(subject, at=checkpoint, device=device)
    defaults = _recipe_settings(source)
    seed = defaults.seed if seed is None else seed
    settings = _drawing_settings(defaults, steps, guidance_scale)
    files = prompts or _recipe_prompts(source, defaults)
    column = column or source.recipe.get("prompts", {}).get("column")
    many = defaults.count if count is None else count
    words = {"include": include or [], "exclude": exclude or []}
    asked = choose_prompts(files, column=column, count=many, at_most=count is None, seed=seed, repeat=repeat, **words)
    with_words = halves(asked, split) if split else None
    weights = _weights(named, source, defaults)
    chosen = choose_metrics([m.strip() for m in metrics.split(",") if m.strip()], weights)
    remarks = refuse_too_few(chosen, _counts(asked, with_words), allow_few)
    size = smaller(source.size, resize)
    identity = identity_of(source, asked, seed, settings, size)
    place = folder or folder_of(source.name, identity)
    with _stages(quiet or as_json) as told:
        # opened first: what is missing is said before anything is drawn
        on = torch_device(device)
        scorer = open_scorer(chosen, weights, size=size, device=on, allow_few=allow_few, progress=told)
        at_once = {"shard_size": shard_size, "batch_size": batch_size}
        pictures = open_set(place, asked, identity, size=size, recipe=source.recipe, **at_once)
        drawing = source.drawing
        result = evaluate(pictures, drawing, scorer, seed=seed, settings=settings, split=with_words, progress=told)
        if pictures_to:
            write_pictures(pictures, pictures_to, told)
    record = {
        "folder": str(place),
        "model": source.model,
        "identity": identity,
        "prompts": {"files": [str(p) for p in files], **words, "repeat": repeat},
        "split": split,
        "weights": scorer.record,
        **result,
    }
    write_down(pictures, record)
    _say(record, remarks + scorer.left_out(result["counts"]), as_json, quiet)


@contextmanager
def _stages(silent: bool) -> Iterator[Progress]:
    with stages(silent) as show:
        yield lambda stage, done, of: show(stage, done, of, {})


def _counts(asked: list[str], with_words: list[bool] | None) -> dict[str, int]:
    """Pictures of each part that is scored."""
    n, halves = len(asked), with_words or []
    return {"all": n} | ({"with": sum(halves), "without": n - sum(halves)} if halves else {})


def _drawing_settings(defaults: Evaluate, steps: int | None, guidance_scale: float | None) -> Settings:
    return {
        "num_inference_steps": steps or defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale if guidance_scale is None else guidance_scale,
    }


def _refuse_missing(named: dict[str, Path | None]) -> None:
    for name, path in named.items():
        # Inception's weights have an error of their own, which says where they come from
        if path and name != "inception" and not path.exists():
            raise RcdeployError(f"--{name} {path}: nothing is there")


def _weights(named: dict[str, Path | None], source: Source, defaults: Evaluate) -> Weights:
    """What was named, else what the recipe names, and the judge that stands beside the source's teacher."""
    from ..evaluate.metrics import Weights

    of_recipe = {"inception": defaults.inception, "clip": defaults.clip, "reference": defaults.reference}
    found = {name: Path(path) for name, path in of_recipe.items() if path}
    found |= {"judge": source.judge} if source.judge else {}
    return Weights(**(found | {name: path for name, path in named.items() if path}))


def _recipe_settings(source: Source) -> Evaluate:
    """The [evaluate] of the source's recipe, as far as this version knows its keys; defaults where there is none."""
    known = {k: v for k, v in source.recipe.get("evaluate", {}).items() if k in Evaluate.model_fields}
    return Evaluate.model_validate(known)


def _recipe_prompts(source: Source, defaults: Evaluate) -> list[Path]:
    """Those that the recipe evaluates with, else its paired ones, whatever it leaves out of them for training; else
    those of its latent cache, where the paired ones were made and not read from a file."""
    named = defaults.prompt_files or source.recipe.get("prompts", {}).get("paired", [])
    found = [Path(p) for p in named]
    if found and all(p.exists() for p in found):
        return found
    if source.cached_prompts and not defaults.prompt_files:
        return [source.cached_prompts]
    gone = next((f"{p} of its recipe is not there" for p in found if not p.exists()), "it names none")
    raise RcdeployError(
        f"no prompts to draw for {source.model['path']}: {gone}",
        fix="Name a file: --prompts captions.txt (or .csv, .jsonl, .parquet).",
    )


def _say(record: dict[str, Any], remarks: list[str], as_json: bool, quiet: bool) -> None:
    from ..evaluate.metrics import LOWER_IS_BETTER

    if as_json:
        out.print_json(json.dumps(record))
        return
    parts = list(record["scores"])
    rows = [
        {
            "score": name,
            **{part: _number(record["scores"][part].get(name)) for part in parts},
            "better": "" if name == "is_deviation" else "lower" if name in LOWER_IS_BETTER else "higher",
        }
        for name in record["scores"]["all"]
    ]
    halves = [f"{n:,} {part}" for part, n in record["counts"].items() if part != "all"]
    title = f"{record['model']['path']}: {record['counts']['all']:,} pictures"
    title += f" ({', '.join(halves)})" if halves else ""
    show_table(title, ["score", *parts, "better"], rows, as_json=False)
    if not quiet:
        for remark in remarks:
            err.print(remark, style="yellow", soft_wrap=True)
        out.print(
            f"  scores    {record['folder']}/scores.json\n  pictures  {record['folder']}/pictures.png", soft_wrap=True
        )


def _number(value: float | None) -> str | None:
    """Four digits that matter: FIDs are tens, similarities are hundredths."""
    return None if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
