"""The model card: README.md of what goes to a model hub, from the manifest, the recipe and the teacher's folder.

Nothing is said that was not read there: what cannot be found is left out, and an unknown licence is called unknown.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, replacing
from rcdeploy_runtime.manifest import Manifest

from ..units import giga_text
from .provenance import provenance, random_conditioning, student_name
from .publication import CARD, PICTURE, Licence, Publication, find_licence, on_hub, run_of, teacher_folder

TEMPLATE = Path(__file__).parent / "templates" / "card.md"


def write_card(
    folder: Path,
    *,
    teacher: Path | None = None,
    licence: str | None = None,
    bench: dict[str, Any] | None = None,
    repo_id: str | None = None,
) -> Path:
    """Writes README.md into a package (whose manifest then lists it) or into a run's pipeline/; returns its path.

    teacher: its diffusers folder, where the recipe does not lead to it. licence: the user's word for it. bench: what
    `rcdeploy bench --json` wrote. repo_id: the name on the hub, for the example. Raises RcdeployError as `card` does.
    """
    found = Publication.find(folder)
    text = card(found, teacher=teacher, licence=licence, bench=bench, repo_id=repo_id)
    # the package opens at every moment: its manifest forgets the old card before the new one lies there. A run's
    # manifest is left alone, because packages name their run by its digest
    if found.is_package and found.manifest.files.pop(CARD, {}):
        found.manifest.write(folder)
    with replacing(found.root / CARD) as beside:
        beside.write_text(text, encoding="utf-8")
    if found.is_package:
        found.manifest.add_file(folder, CARD)
        found.manifest.write(folder)
    elif grid := _grid(found):
        with replacing(found.root / PICTURE) as beside:
            shutil.copyfile(grid, beside)
    return found.root / CARD


def card(
    found: Publication,
    *,
    teacher: Path | None = None,
    licence: str | None = None,
    bench: dict[str, Any] | None = None,
    repo_id: str | None = None,
) -> str:
    """The text, front matter included; arguments as write_card's.

    Raises RcdeployError for a `teacher` that is not this model's, and for a `bench` that does not name this folder.
    """
    import jinja2

    manifest, evaluate = found.manifest, found.manifest.recipe.get("evaluate", {})
    folder, reason = teacher_folder(run_of(found) or manifest, teacher)
    rights = find_licence(manifest, folder, reason, licence)
    drawn_with = {k: evaluate[k] for k in ("num_inference_steps", "guidance_scale") if k in evaluate}
    values = {
        "front_matter": _front_matter(found, rights),
        "title": repo_id.split("/")[-1] if repo_id else found.folder.resolve().name,
        "summary": _summary(found),
        "picture": PICTURE if _grid(found) else None,
        "package": found.is_package,
        "repo_id": repo_id,
        "prompt": json.dumps((evaluate.get("prompts") or ["a text of your own"])[0], ensure_ascii=False),
        "settings": "".join(f", {name}={value}" for name, value in drawn_with.items()),
        "unets": _unets(found, folder),
        "components": _components(manifest),
        "verdict": manifest.facts.get("verdict", "").replace("this machine", "the machine that made the package"),
        "bench": _bench(found, bench) if bench else None,
        "origin": {"what": "Teacher" if manifest.recipe else "Model", **manifest.teacher},
        "provenance": provenance(found),
        "licence": rights.sentence,
        "limitations": _limitations(found),
    }
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, **options)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)


def _grid(found: Publication) -> Path | None:
    file = found.folder / "samples" / "latest.png"
    return file if not found.is_package and file.is_file() else None


def _front_matter(found: Publication, licence: Licence) -> str:
    from huggingface_hub import ModelCardData

    manifest, tags = found.manifest, ["text-to-image", "latent-diffusion", "rcdeploy"]
    if manifest.recipe:
        tags += ["distillation", "random-conditioning"] if random_conditioning(manifest) else ["distillation"]
    if found.is_package:
        target = str(manifest.facts.get("target", manifest.facts["format"]))
        tags.append({"trt": "tensorrt"}.get(target, target))
    more: dict[str, Any] = dict(licence.more)
    data = ModelCardData(
        base_model=manifest.teacher["id"] if on_hub(manifest) else None,
        library_name="rcdeploy" if found.is_package else "diffusers",
        license=licence.id,
        pipeline_tag="text-to-image",
        tags=tags,
        **more,
    )
    return str(data.to_yaml()).strip()


def _summary(found: Publication) -> str:
    manifest, facts = found.manifest, found.manifest.facts
    teacher = manifest.teacher.get("id", "an unnamed model")
    if manifest.recipe:
        how = " with random conditioning (Kim et al., CVPR 2025)" if random_conditioning(manifest) else ""
        student = student_name(manifest)
        what = f"A small text-to-image model: the student {student} of {teacher}, distilled{how} by rcdeploy."
    else:
        what = f"The text-to-image model {teacher}, packed by rcdeploy as it was: nothing was distilled."
    if not found.is_package:
        return f"{what} This folder is a diffusers pipeline; its UNet has the EMA weights."
    kinds = {"onnx": "ONNX", "openvino": "OpenVINO IR", "trt": "TensorRT engines"}
    return f"{what} This folder is a package of {kinds[facts['format']]}, which draws without torch."


def _unets(found: Publication, teacher: Path | None) -> list[dict[str, Any]]:
    """This one, and the teacher's where it is another and can be looked at. Counted from their configs."""
    from ..bench.macs import parameters, unet_macs
    from ..student.build import build_on_meta

    configs = {"this one": found.root / "unet" / "config.json"}
    if teacher and found.manifest.recipe:
        configs["the teacher's"] = teacher / "unet" / "config.json"
    text = read_json(found.root / "text_encoder" / "config.json")
    rows = []
    for name, file in configs.items():
        unet = build_on_meta(read_json(file))
        macs = unet_macs(unet, None, int(text.get("max_position_embeddings", 77)))
        row = {"name": name, "parameters": f"{parameters(unet):,}"}
        rows.append(row | {"macs_thop": giga_text(macs.thop), "macs": giga_text(macs.total)})
    return rows


def _components(manifest: Manifest) -> list[dict[str, str]]:
    """A package's networks: precision, size, and how far from torch."""
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


def _bench(found: Publication, bench: dict[str, Any]) -> dict[str, Any]:
    """The rows of this folder in what `rcdeploy bench --json` wrote."""
    here = {found.folder.resolve(), found.root.resolve()}
    subjects = [s for s in bench.get("subjects", []) if s.get("source") and Path(s["source"]).resolve() in here]
    if not subjects:
        others = ", ".join(str(s.get("source")) for s in bench.get("subjects", []))
        raise RcdeployError(
            f"the bench file has no figures of {found.folder}, but of: {others or 'nothing'}",
            fix=f"Make them with: rcdeploy bench {found.folder} --json",
        )
    rows = []
    for name, figures in subjects[0]["backends"].items():
        image = figures["timings"]["image"]
        rows.append(
            {
                "name": name,
                "median": f"{image['median']:.3f}",
                "spread": f"{image['min']:.3f} to {image['max']:.3f}",
                "load": f"{figures['load_seconds']:.2f}",
                "first": f"{figures['first_image_seconds']:.2f}",
                "memory": f"{figures['peak_memory_bytes'] / 1e6:,.0f}",
            }
        )
    s, machine = bench["settings"], bench["machine"]
    settings = (
        f"{s['height']} x {s['width']} pixels, {s['num_inference_steps']} steps, guidance {s['guidance_scale']}, "
        f"{s['threads']} threads, {s['device']}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    return {
        "rows": rows,
        "settings": settings,
        "machine": f"{machine['processor']}, {machine['memory_gb']} GB, {versions}",
    }


def _limitations(found: Publication) -> list[str]:
    manifest, facts, recipe = found.manifest, found.manifest.facts, found.manifest.recipe
    _, height, width = manifest.latents["shape"]
    lines = ["It has the biases, gaps and errors of the model it was made from, and its own."]
    if recipe and random_conditioning(manifest):
        lines.append("Most texts of the pool were learnt from as texts only, without a picture or a latent of theirs.")
    lines.append("There is no safety checker in it: look at what it draws before others do.")
    lines.append(
        "This card has no measure of picture quality (FID, IS, CLIP score): look at pictures of your own texts."
    )
    vae = read_json(found.root / ("vae_decoder" if found.is_package else "vae") / "config.json")
    unit = 2 ** (len(vae["block_out_channels"]) - 1)  # pixels a latent
    made_for = f"Made for {height * unit} x {width * unit} pixels"
    if "static_size" in facts:
        lines.append(f"It draws pictures of {facts['static_size'][0]} x {facts['static_size'][1]} pixels only.")
    else:
        multiple = f" (multiples of {facts['size_multiple']})" if "size_multiple" in facts else ""
        lines.append(f"{made_for}. How well it draws other sizes{multiple} was not measured.")
    low = [f"{c} {p}" for c, p in facts.get("precision", {}).items() if p != "fp32"]
    if low:
        lines.append(f"Below fp32: {', '.join(low)}; the table above says how far from torch that is.")
    return lines
