"""Who opens which student: docs/compatibility.md.

    make compatibility                       # or: python docs/compatibility.py

diffusers is asked on the spot, with small models of random weights made by each student's rule. What stable-
diffusion.cpp and ComfyUI do with a single file was read in their sources. The other cells name the test that opens
such a package; where no test does, they say "not run". A test that no longer exists fails this script.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy.student.build import build_student
from rcdeploy.student.spec import SD14_UNET_CONFIG, student_config
from rcdeploy_export.single_file import write_single_file
from rcdeploy_runtime.errors import RcdeployError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/compatibility.md"
NOTE = "<!-- Written by docs/compatibility.py: `make compatibility`. -->\n"
NOT_RUN = "not run"
TESTED_CONSUMERS = ("Optimum", "openvino-genai", "onnxruntime-web", "ExecuTorch", "Core ML converter")
PROMPT, SIZE, STEPS, SCALE = "a red shirt", 64, 2, 4.0


@dataclass(frozen=True)
class Row:
    """A kind of model. name: as the page has it. teacher: embedded, that the toy is made from. rule: of the student.

    changes: of the toy's UNet config. tested: consumer -> (answer, test).
    """

    name: str
    teacher: str = "fashion"
    rule: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    tested: dict[str, tuple[str, str]] = field(default_factory=dict)


GENAI = "tests/test_openvino.py::test_genai_draws_with_the_embedded_teachers"
INTEROP = "tests/test_interop.py::test_optimum_generates_the_same_image"
EXECUTORCH = "tests/test_executorch.py::test_it_generates_what_diffusers_generates"
COREML = "tests/test_coreml.py::test_every_network_is_converted_and_its_structure_is_checked"
ROWS = [
    Row(
        "SD-1.x teacher",
        tested={
            "Optimum": ("draws the same", INTEROP),
            "openvino-genai": ("draws the same", GENAI),
            "ExecuTorch": ("draws the same", EXECUTORCH),
            "Core ML converter": ("converts", COREML),
        },
    ),
    *(Row(name, rule=name) for name in ("b-base", "b-small")),
    Row(
        "b-tiny, also few-step",
        rule="b-tiny",
        tested={"onnxruntime-web": ("draws the same", "tests/test_web.py::test_numbers_and_packages_in_node")},
    ),
    *(Row(name, rule=name) for name in ("c-base", "c-small", "c-tiny", "c-micro")),
    Row(
        "guidance as an input",
        changes={"time_cond_proj_dim": 32},
        tested={"onnxruntime-web": ("draws the same", "tests/test_web.py::test_numbers_and_packages_in_node")},
    ),
    Row(
        "SDXL teacher",
        "fashion_xl",
        tested={
            "Optimum": ("draws the same", INTEROP),
            "openvino-genai": ("draws the same", GENAI),
            "onnxruntime-web": ("draws the same", "tests/test_web.py::test_numbers_and_packages_in_node"),
        },
    ),
    *(Row(name, "fashion_xl", rule=name) for name in ("koala-700m", "koala-1b")),
]


def main() -> int:
    missing = missing_tests()
    if missing:
        print("These tests do not exist:", *missing, sep="\n  ")
        return 1
    torch.set_grad_enabled(False)
    header = [
        "model",
        "diffusers",
        "diffusers, single file",
        "stable-diffusion.cpp (read)",
        "ComfyUI (read)",
        *TESTED_CONSUMERS,
    ]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            cells = [
                row.name,
                *in_diffusers(row, Path(folder) / "model"),
                in_stable_diffusion_cpp(row),
                in_comfyui(row),
            ]
        for consumer in TESTED_CONSUMERS:
            answer, test = row.tested.get(consumer, (NOT_RUN, ""))
            cells.append(f"[{answer}](../{test.partition('::')[0]})" if test else answer)
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1])
    PAGE.write_text(NOTE + PREFACE + "\n".join(lines) + "\n" + REMARKS, encoding="utf-8")
    return 0


def missing_tests() -> list[str]:
    """Cited tests that are in no file."""
    cited = {test for row in ROWS for _, test in row.tested.values()}
    return [t for t in sorted(cited) if f"def {t.partition('::')[2]}(" not in (ROOT / t.partition("::")[0]).read_text()]


def in_diffusers(row: Row, folder: Path) -> list[str]:
    """Whether diffusers draws what torch draws here, and whether from_single_file gives the same weights."""
    source = LatentDiffusionModel(str(ROOT / "examples/teachers" / row.teacher))
    pipeline = DiffusionPipeline.from_pretrained(source.folder, torch_dtype=torch.float32)
    if row.rule or row.changes:
        config = dict(source.unet_config)
        config = student_config(row.rule, config)[0] if row.rule else config
        pipeline.unet = build_student({**config, **row.changes}, 0)
    pipeline.save_pretrained(folder)
    return [attempt(lambda: drawn(folder, row)), attempt(lambda: read_back(folder))]


def drawn(folder: Path, row: Row) -> str:
    model = LatentDiffusionModel(str(folder))
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = runtime_noise(model, [0], (SIZE, SIZE))
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE}
    ours = sample_images(model, [PROMPT], noise, sampler="ddim", seeds=[0], **settings)[0]
    image = pipeline(PROMPT, latents=noise, height=SIZE, width=SIZE, **settings).images[0]
    theirs = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    difference = round((ours - theirs).abs().max().item() * 255)
    return "draws the same" if difference <= 1 else f"opens; draws otherwise (up to {difference} of 255)"


def read_back(folder: Path) -> str:
    model = LatentDiffusionModel(str(folder))
    file = folder / "single.safetensors"
    write_single_file(model, file)
    loaded = UNet2DConditionModel.from_single_file(str(file), config=str(folder), subfolder="unet").state_dict()
    expected = model.unet.state_dict()
    same = loaded.keys() == expected.keys() and all(torch.equal(loaded[k], expected[k]) for k in expected)
    return "the same weights, told the config" if same else "opens; other weights"


def attempt(check: Callable[[], str]) -> str:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return check()
    except RcdeployError as error:
        return f"not written: {error.message.partition(', ')[2] or error.message}"
    except Exception as error:  # a table of what other programs do: whatever they raise is the answer
        return f"refuses: {type(error).__name__}"


def in_stable_diffusion_cpp(row: Row) -> str:
    """By its rule of 0.4.7: 320 channels, 1, 2, 4, 4 times; two layers a stage; or, without mid block, three stages."""
    if row.teacher == "fashion_xl" or row.changes:
        return "no single file"
    config = dict(student_config(row.rule, SD14_UNET_CONFIG)[0]) if row.rule else SD14_UNET_CONFIG
    if config["block_out_channels"][0] != 320:
        return "refuses: other widths than 320, 640, 1280"
    if config.get("mid_block_type", "") is None:
        three = len(config["block_out_channels"]) == 3
        return "refuses: it numbers blocks by three a stage" if three else "refuses: no mid block, four stages"
    return "opens" if config["layers_per_block"] == 2 else "refuses: one layer a stage"


def in_comfyui(row: Row) -> str:
    """By its detection: stages and layers are counted, and an SD-1.x model has 320 channels in its first."""
    if row.teacher == "fashion_xl" or row.changes:
        return "no single file"
    config = dict(student_config(row.rule, SD14_UNET_CONFIG)[0]) if row.rule else SD14_UNET_CONFIG
    return "opens" if config["block_out_channels"][0] == 320 else "refuses: other widths than 320"


PREFACE = """# Who opens what

Every package and folder is made of standard parts; not every program knows every shape of a UNet. "draws the same": the
image from the same noise, to one or two grey levels of 255. "not run": nobody has tried it here, which says nothing
against it: an ONNX or OpenVINO graph of one student has the same operators as another's.

"""
REMARKS = """

- **diffusers** was run by this page's script, on toys of random weights with each rule's shape.
- **stable-diffusion.cpp** and **ComfyUI** were read, not run: of the first the sources in its Python binding 0.4.7,
  of the second its model detection. Cells are for a student of SD-1.4 in its full size. stable-diffusion.cpp's
  sources after that release take the first width from the file, so c-base to c-micro should open there; its tiny
  UNets have b-tiny's shape, but number blocks by three a stage, as a file of two layers a stage would, where
  `--format single-file` numbers those that exist, as ComfyUI and diffusers count them. For UNets without mid block
  ComfyUI has a case of its own.
- A **tiny decoder** goes along in ONNX and OpenVINO packages, and diffusers opens it as AutoencoderTiny. There is
  no single file with one: web UIs and stable-diffusion.cpp take it as a file of its own.
- **ExecuTorch**: `make test-executorch`. **Core ML**: `make test-coreml`, converted and not executed. **Optimum**:
  `make test-interop`.
- This project's runtime opens what `rcdeploy export` writes as ONNX and OpenVINO, of every row: it compares each
  network with torch first, or writes nothing.
"""

if __name__ == "__main__":
    sys.exit(main())
