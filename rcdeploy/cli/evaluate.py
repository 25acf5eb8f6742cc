"""rcdeploy evaluate"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import err, make_log, out, quieten_libraries, show_table, stages
from .options import DEVICE, QUIET

if TYPE_CHECKING:
    from ..evaluate.evaluation import Evaluation
    from ..evaluate.spec import EvaluationSpec
    from ..evaluate.target import EvaluationTarget


def evaluate_command(
    model: str = typer.Argument(None, help="A run, a package or a diffusers folder; by default the newest run."),
    prompts: list[Path] = typer.Option(None, help="Files of prompts; by default the model's own. Repeatable."),
    column: str | None = typer.Option(None, help="Of csv, jsonl and parquet files; detected by default."),
    count: int | None = typer.Option(None, min=0, help="Number of prompts to sample (0 = all); by default 1,000."),
    repeat: int = typer.Option(1, min=1, help="Images per prompt; T2I-CompBench takes 10."),
    include: list[str] = typer.Option(None, help="Only prompts with this word (regular expression); repeatable."),
    exclude: list[str] = typer.Option(None, help="No prompt with this word (regular expression); repeatable."),
    split: str | None = typer.Option(
        None,
        metavar="animals|FILE|coco-animals:FILE",
        help="Also score two parts apart: prompts with and without animals, or the words of a text file; or images of "
        "COCO with and without animals, by its instances_val2014.json.",
    ),
    metrics: str = typer.Option(
        "",
        metavar="fid,is,clip,vqa,judge,compbench",
        help="By default all that can be computed; compbench if it is named.",
    ),
    inception: Path | None = typer.Option(None, help="Weights of Inception-v3 (.safetensors), for fid and is."),
    reference: Path | None = typer.Option(None, help="Real images, or their statistics (.safetensors, .npz), for fid."),
    clip: Path | None = typer.Option(
        None,
        metavar="FOLDER|OWNER/NAME",
        help="A CLIP model in transformers' layout, or its name on the hub; with --metrics clip by default the paper's "
        "ViT-g/14.",
    ),
    vqa: Path | None = typer.Option(
        None,
        metavar="FOLDER|OWNER/NAME",
        help="A BLIP model for question answering, in transformers' layout, or its name on the hub.",
    ),
    detector: Path | None = typer.Option(
        None,
        metavar="FOLDER|OWNER/NAME",
        help="A zero-shot object detector (OWLv2, Grounding DINO), in transformers' layout, or its name on the hub.",
    ),
    noun_phrases: Path | None = typer.Option(
        None,
        metavar="NAME|FOLDER",
        help="spaCy pipeline that reads prompts for vqa and compbench; by default en_core_web_sm.",
    ),
    judge: Path | None = typer.Option(None, help="A judge; by default the one in the teacher's folder."),
    checkpoint: str | None = typer.Option(None, metavar="best|last|STEP", help="EMA weights of a run's checkpoint."),
    seed: int | None = typer.Option(None, min=0, help="Image i is that of rcdeploy generate --seed SEED+i."),
    steps: int | None = typer.Option(None, min=1, help="Denoising steps; by default the model's own, or 25."),
    guidance_scale: float | None = typer.Option(None, min=0, help="By default the model's own, or 7.5."),
    sampler: str | None = typer.Option(None, help="ddim, lcm, tcd ...; by default the model's own, or ddim."),
    resize: int | None = typer.Option(
        None, min=0, help="Image size in pixels to score at; by default 256 of 512; 0 for the native size."
    ),
    folder: Path | None = typer.Option(None, "--out", "-o", help="By default evaluations/NAME-DIGEST."),
    image_folder: Path | None = typer.Option(None, "--write-pictures", help="Also write PNGs here, for other tools."),
    allow_few: bool = typer.Option(False, "--allow-few", help="Compute Frechet distances of however few images."),
    batch_size: int = typer.Option(16, min=1, help="Images sampled at once."),
    shard_size: int | None = typer.Option(
        None, min=1, help="Images per file, at most so many are lost when stopped; by default 16 files or more."
    ),
    device: str = DEVICE,
    as_json: bool = typer.Option(False, "--json", help="Print the contents of scores.json, and nothing else."),
    quiet: bool = QUIET,
) -> None:
    """Generate images with a model and score them: FID, IS, CLIP score, BLIP-VQA, a judge's accuracy.

    Images are sampled as the model records it (else by DDIM), at its native size, and kept in files of several images,
    so the same command resumes after any interruption, and several machines that see one folder may run it at once.
    Other text-to-image models of diffusers (PixArt, SD-3 ...) are sampled by its pipeline and their own scheduler.

    rcdeploy evaluate runs/c_micro --prompts metadata.csv --count 0 --inception inception.safetensors --reference real/
    rcdeploy evaluate packages/quickstart-onnx --prompts examples/teachers/fashion/captions.txt.gz --count 500

    Table 2's halves, and those of other prompts, by keywords:

    rcdeploy evaluate RUN --prompts captions_val2014.json --count 0 --split coco-animals:instances_val2014.json
    rcdeploy evaluate RUN --prompts mine.txt --split animals

    Table D (T2I-CompBench): a category by its file of prompts, or with all six files their average too. The
    benchmark scores 512 x 512: --resize 0.

    rcdeploy evaluate RUN --prompts spatial_val.txt --count 0 --repeat 10 --metrics compbench --detector owlv2/

    Its own detector, UniDet, is in no library: --write-pictures DIR names images as T2I-CompBench's own evaluators
    expect, {prompt}_{number}.png.
    """
    from ..evaluate.target import EvaluationTarget
    from ..model_folder import resolve

    target = EvaluationTarget.of(resolve(model), checkpoint)
    target.check_sampler(sampler)
    if target.index is not None:  # its defaults are asked of diffusers
        quieten_libraries()
    spec = target.default_spec().replace(
        prompt_files=tuple(prompts) if prompts else target.choose_prompt_files(),
        column=column,
        count=count,
        fewer_is_fine=count is None,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        repeat=repeat,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        resize=resize,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        inception=inception,
        clip=clip,
        vqa=vqa,
        detector=detector,
        judge=judge,
        reference=reference,
        noun_phrases=noun_phrases,
        allow_few=allow_few,
        batch_size=batch_size,
        shard_size=shard_size,
    )
    _evaluate(target, spec, split, folder, image_folder, device, quiet=quiet, as_json=as_json)


def _evaluate(
    target: EvaluationTarget,
    spec: EvaluationSpec,
    split: str | None,
    folder: Path | None,
    image_folder: Path | None,
    device: str,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Checks everything that needs no torch, then loads, generates, scores and prints."""
    from ..evaluate.prompt_choice import choose_and_split
    from ..evaluate.spec import split_counts

    spec.check_files()
    spec.selected_metrics()
    chosen, halves = choose_and_split(spec, split)
    counts = split_counts(len(chosen), halves)
    remarks = spec.check_enough_images(counts)
    if target.sampling and (remark := target.sampling.remark(spec.num_inference_steps)):
        remarks.append(remark)
    if target.description is not None:
        spec.image_size(target.description.image_size)

    quieten_libraries()
    from ..evaluate.evaluation import Evaluation, write_pngs, write_results

    with stages(quiet or as_json) as progress:
        evaluation = Evaluation.prepare(target, spec, chosen, folder=folder, device=device, progress=progress)
        try:
            record = {**evaluation.run(halves, progress, make_log(quiet or as_json)), "split": split}
            if image_folder:
                write_pngs(evaluation.image_set, image_folder, progress)
        except KeyboardInterrupt:
            raise _stopped(evaluation) from None
    write_results(evaluation.image_set, record)
    if as_json:
        out.print_json(json.dumps(record))
    else:
        _show(record, remarks + evaluation.scorer.omitted(counts), quiet)


def _stopped(evaluation: Evaluation) -> typer.Exit:
    images = evaluation.image_set
    kept = f"{images.stored_images():,} of {len(images.prompts):,} images are kept in {images.folder}"
    err.print(f"Stopped. {kept}; the same command goes on from there.", soft_wrap=True, highlight=False)
    return typer.Exit(130)


def _show(record: dict[str, Any], remarks: list[str], quiet: bool) -> None:
    from ..evaluate.spec import LOWER_IS_BETTER

    parts = list(record["scores"])
    rows = [
        {
            "score": name,
            **{part: _formatted(record["scores"][part].get(name)) for part in parts},
            "better": "" if name == "is_deviation" else "lower" if name in LOWER_IS_BETTER else "higher",
        }
        for name in record["scores"]["all"]
    ]
    halves = [f"{n:,} {part}" for part, n in record["counts"].items() if part != "all"]
    title = f"{record['model']['path']}: {record['counts']['all']:,} images"
    title += f" ({', '.join(halves)})" if halves else ""
    show_table(title, ["score", *parts, "better"], rows, as_json=False)
    if quiet:
        return
    for remark in remarks:
        err.print(remark, style="yellow", soft_wrap=True)
    folder = record["folder"]
    out.print(f"  scores  {folder}/scores.json\n  images  {folder}/pictures.png", soft_wrap=True)


def _formatted(value: float | None) -> str | None:
    """Four significant digits: FIDs are tens, similarities are hundredths."""
    return None if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
