"""The model card: README.md for a model hub, from the manifest, the recipe, evaluations and the teacher's folder.

It states only what was read there: what cannot be found is left out, and an unknown licence is called unknown.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, replacing
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.sampling_defaults import SamplingDefaults, SamplingFacts

from ..model_config import has_wavelet_gating, pixels_per_latent
from ..units import giga_text
from .evaluations import EvaluationScores, find_scores, package_digests
from .licence import Licence, find_licence
from .provenance import provenance, random_conditioning, student_name
from .publication import CARD, SAMPLES, Publication, is_on_hub, local_teacher

TEMPLATE = Path(__file__).parent / "templates" / "card.md"
FORMAT_TITLES = {
    "onnx": "ONNX",
    "openvino": "OpenVINO IR",
    "trt": "TensorRT engines",
    "executorch": "ExecuTorch programs",
    "coreml": "Core ML models",
}
APPS = {
    "executorch": "Apps on Android and iOS open it by ExecuTorch: a caller in Kotlin is in rcdeploy's examples/embed.",
    "coreml": "Apps on iOS 17 and macOS 14 open it by Core ML: a caller in Swift is in rcdeploy's examples/embed.",
}
"""format -> how what is made for phones is used"""
DIFFUSERS_SCHEDULERS = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}
"""diffusers' class for a sampler that its pipeline would not take by itself"""
TARGET_TAGS = {"trt": "tensorrt"}


@dataclass(frozen=True)
class CardOptions:
    """A user's additions to a card.

    Attributes:
        teacher: its diffusers folder, where the recipe does not lead to it.
        licence: stated by the user, where the teacher's folder states none.
        bench: what `rcdeploy bench --json` printed.
        repo_id: the name on the hub, for the example.
    """

    teacher: Path | None = None
    licence: str | None = None
    bench: dict[str, Any] | None = None
    repo_id: str | None = None


def write_card(folder: Path, options: CardOptions | None = None) -> Path:
    """Write README.md into a package or into a run's pipeline/, and return its path.

    Neither manifest lists it: packages name their run by its manifest's digest, and applications pin a package by its.

    Raises:
        RcdeployError: the folder is neither a run nor a package; options.teacher is another model; options.bench does
            not measure this folder.
    """
    publication = Publication.resolve(folder)
    text = card_text(publication, options or CardOptions())
    # packages of rcdeploy 0.1 list their card: the package opens at every moment, because its manifest loses the old
    # card before the new one is there
    if publication.is_package and publication.manifest.files.pop(CARD, {}):
        publication.manifest.write(folder)
    with replacing(publication.root / CARD) as beside:
        beside.write_text(text, encoding="utf-8")
    if samples := _samples(publication):
        with replacing(publication.root / SAMPLES) as beside:
            shutil.copyfile(samples, beside)
    return publication.root / CARD


def card_text(publication: Publication, options: CardOptions) -> str:
    """The card with its front matter. Raises RcdeployError as write_card does."""
    import jinja2

    manifest = publication.manifest
    evaluate = manifest.recipe.get("evaluate", {})
    teacher, reason = local_teacher(publication.run or manifest, options.teacher)
    licence = find_licence(manifest, teacher, reason, options.licence)
    sampling = manifest.facts_as(SamplingFacts).sampling
    evaluations = _evaluations(publication)
    values = {
        "front_matter": _front_matter(publication, licence),
        "title": options.repo_id.split("/")[-1] if options.repo_id else publication.folder.resolve().name,
        "summary": _summary(publication),
        "samples": SAMPLES if _samples(publication) else None,
        "package": publication.is_package,
        "apps": APPS.get(manifest.facts.get("format", "")) if publication.is_package else None,
        "own_unet": has_wavelet_gating(read_json(publication.root / "unet" / "config.json")),
        "repo_id": options.repo_id,
        "prompt": json.dumps((evaluate.get("prompts") or ["a prompt of your own"])[0], ensure_ascii=False),
        "settings": "".join(f", {name}={value}" for name, value in _arguments(publication, sampling).items()),
        "scheduler": DIFFUSERS_SCHEDULERS.get(sampling.sampler) if sampling else None,
        "sampling": sampling,
        "unets": _unets(publication, teacher),
        "components": _components(manifest),
        "verdict": manifest.facts.get("verdict", "").replace("this machine", "the machine that made the package"),
        "evaluations": evaluations,
        "bench": _bench(publication, options.bench) if options.bench else None,
        "origin": {"title": "Teacher" if manifest.recipe else "Model", **manifest.teacher},
        "provenance": provenance(publication),
        "licence": licence.sentence,
        "limitations": _limitations(publication, evaluations),
    }
    jinja_options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, **jinja_options)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)


def _samples(publication: Publication) -> Path | None:
    """The last grid of a run's images."""
    file = publication.folder / "samples" / "latest.png"
    return file if not publication.is_package and file.is_file() else None


def _front_matter(publication: Publication, licence: Licence) -> str:
    from huggingface_hub import ModelCardData

    manifest = publication.manifest
    tags = ["text-to-image", "latent-diffusion", "rcdeploy"]
    if manifest.recipe:
        tags += ["distillation", "random-conditioning"] if random_conditioning(manifest) else ["distillation"]
    if publication.is_package:
        target = str(manifest.facts.get("target", manifest.facts["format"]))
        tags.append(TARGET_TAGS.get(target, target))
    details: dict[str, Any] = dict(licence.details)
    data = ModelCardData(
        base_model=manifest.teacher["id"] if is_on_hub(manifest) else None,
        library_name="rcdeploy" if publication.is_package else "diffusers",
        license=licence.id,
        pipeline_tag="text-to-image",
        tags=tags,
        **details,
    )
    return str(data.to_yaml()).strip()


def _summary(publication: Publication) -> str:
    manifest = publication.manifest
    teacher = manifest.teacher.get("id", "an unnamed model")
    if manifest.recipe:
        how = " with random conditioning (Kim et al., CVPR 2025)" if random_conditioning(manifest) else ""
        student = student_name(manifest)
        model = f"A small text-to-image model: the student {student} of {teacher}, distilled{how} by rcdeploy."
    else:
        model = f"The text-to-image model {teacher}, packaged by rcdeploy without any distillation."
    if not publication.is_package:
        return f"{model} This folder is a diffusers pipeline; its UNet has the EMA weights."
    made_for = manifest.facts["format"]
    use = "for phones" if made_for in APPS else "which runs without torch"
    return f"{model} This folder is a package of {FORMAT_TITLES[made_for]}, {use}."


def _unets(publication: Publication, teacher: Path | None) -> list[dict[str, Any]]:
    """Parameters and MACs of this UNet, and of the teacher's where it is another and on this machine."""
    from ..bench.macs import parameters, unet_macs
    from ..student.build import build_on_meta

    configs = {"this one": publication.root / "unet" / "config.json"}
    if teacher and publication.manifest.recipe:
        configs["the teacher's"] = teacher / "unet" / "config.json"
    text_length = int(read_json(publication.root / "text_encoder" / "config.json").get("max_position_embeddings", 77))
    rows = []
    for name, file in configs.items():
        unet = build_on_meta(read_json(file))
        macs = unet_macs(unet, None, text_length)
        rows.append(
            {
                "name": name,
                "parameters": f"{parameters(unet):,}",
                "macs_thop": giga_text(macs.thop),
                "macs": giga_text(macs.total),
            }
        )
    return rows


def _arguments(publication: Publication, sampling: SamplingDefaults | None) -> dict[str, Any]:
    """Arguments of the example, beside the prompt: a package that records its own sampling needs none."""
    if sampling is None:
        evaluate = publication.manifest.recipe.get("evaluate", {})
        return {key: evaluate[key] for key in ("num_inference_steps", "guidance_scale") if key in evaluate}
    if publication.is_package:
        return {}
    arguments = {key: value for key, value in vars(sampling).items() if key != "sampler"}
    return {**arguments, "eta": 0.0} if sampling.sampler == "tcd" else arguments


def _components(manifest: Manifest) -> list[dict[str, str]]:
    """A package's networks: precision, size, and errors against torch."""
    return [
        {
            "name": parity["component"],
            "precision": manifest.facts["precision"][parity["component"]],
            "mb": f"{manifest.size_of(parity['component']) / 1e6:,.1f}",
            "max_abs_error": f"{parity['max_abs_error']:.1e}",
            "relative_error": f"{parity['relative_error']:.1e}",
        }
        for parity in manifest.facts.get("parity", [])
    ]


def _evaluations(publication: Publication) -> list[EvaluationScores]:
    """Evaluations of this very model, in the current folder or beside its own."""
    from ..diffusion_model import LatentDiffusionModel

    if publication.is_package:
        digests = package_digests(publication.manifest)
    else:
        digests = {LatentDiffusionModel(str(publication.root)).revision}
    folder = publication.folder.resolve()
    places = [Path.cwd(), folder, folder.parent, folder.parent.parent]
    return find_scores(digests, folder.name, places)


def _bench(publication: Publication, bench: dict[str, Any]) -> dict[str, Any]:
    """The rows of this folder in what `rcdeploy bench --json` printed."""
    folders = {publication.folder.resolve(), publication.root.resolve()}
    rows = [s for s in bench.get("subjects", []) if s.get("source") and Path(s["source"]).resolve() in folders]
    if not rows:
        others = ", ".join(str(s.get("source")) for s in bench.get("subjects", []))
        raise RcdeployError(
            f"the bench file does not measure {publication.folder}, but: {others or 'nothing'}",
            fix=f"Measure it with: rcdeploy bench {publication.folder} --json",
        )
    settings = {**bench["settings"], **rows[0].get("sampling", {})}
    machine = bench["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    return {
        "rows": [_bench_row(name, measurement) for name, measurement in rows[0]["backends"].items()],
        "settings": f"{settings['height']} x {settings['width']} pixels, {settings['num_inference_steps']} steps, "
        f"guidance {settings['guidance_scale']}, {settings['threads']} threads, {settings['device']}",
        "machine": f"{machine['processor']}, {machine['memory_gb']} GB, {versions}",
        "warnings": bench.get("warnings", []),
    }


def _bench_row(backend: str, measurement: dict[str, Any]) -> dict[str, str]:
    image = measurement["timings"]["image"]
    return {
        "backend": backend,
        "median": f"{image['median']:.3f}",
        "spread": f"{image['min']:.3f} to {image['max']:.3f}",
        "load": f"{measurement['load_seconds']:.2f}",
        "first": f"{measurement['first_image_seconds']:.2f}",
        "memory": f"{measurement['peak_memory_bytes'] / 1e6:,.0f}",
    }


def _limitations(publication: Publication, evaluations: list[EvaluationScores]) -> list[str]:
    manifest = publication.manifest
    facts = manifest.facts
    sentences = ["It has the biases, gaps and errors of the model it was made from, and its own."]
    if manifest.recipe and random_conditioning(manifest):
        sentences.append("Most prompts of the pool were used as text only, without an image or a latent of their own.")
    sentences.append("It has no safety checker: review its images before you show them to others.")
    if evaluations:
        sentences.append("The scores above are of those prompts only: review images of your own prompts.")
    else:
        sentences.append(
            "This card has no measure of image quality (FID, IS, CLIP score): review images of your own prompts."
        )
    sentences.append(_size_limitation(publication))
    low = [f"{component} {p}" for component, p in facts.get("precision", {}).items() if p != "fp32"]
    if low:
        sentences.append(f"Below fp32: {', '.join(low)}; the table above has their errors against torch.")
    return sentences


def _size_limitation(publication: Publication) -> str:
    manifest = publication.manifest
    if "static_size" in manifest.facts:
        height, width = manifest.facts["static_size"]
        return f"It generates images of {height} x {width} pixels only."
    _, height, width = manifest.latents["shape"]
    vae = "vae_decoder" if publication.is_package else "vae"
    pixels = pixels_per_latent(read_json(publication.root / vae / "config.json"))
    multiple = f" (multiples of {manifest.facts['size_multiple']})" if "size_multiple" in manifest.facts else ""
    return f"Made for {height * pixels} x {width * pixels} pixels. Other sizes{multiple} were not evaluated."
