"""Who opens which student: docs/compatibility.md.

    make compatibility                                        # or: python docs/compatibility.py
    python docs/compatibility.py --consumers ExecuTorch --rows b-tiny c-micro
    python docs/compatibility.py --rows                       # asks nobody; writes the page from the answers kept

Small models of random weights, made by each student's rule, are handed to each program (docs/consumers), and its image
is compared with torch's. stable-diffusion.cpp knows SD-1.x's full size alone, and gets that. A program that needs an
environment of its own is asked where `make test-...` has made it. docs/compatibility.json keeps every answer until
the next. What ComfyUI does was read in its sources.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcdeploy.student.spec import SD14_UNET_CONFIG, student_config

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/compatibility.md"
ANSWERS = ROOT / "docs/compatibility.json"
NOTE = "<!-- Written by docs/compatibility.py: `make compatibility`. -->\n"
COMFYUI = "ComfyUI (read)"
COLUMNS = [
    "diffusers",
    "diffusers, single file",
    "stable-diffusion.cpp, diffusers folder",
    "stable-diffusion.cpp, single file",
    COMFYUI,
    "Optimum",
    "openvino-genai",
    "onnxruntime-web",
    "ExecuTorch",
    "Core ML converter",
]


@dataclass(frozen=True)
class Row:
    """A kind of model. name: as the page has it. teacher: embedded, that the toy is made from. rule: of the student.

    changes: of the toy's UNet config. tiny_decoder: in the place of the VAE.
    """

    name: str
    teacher: str = "fashion"
    rule: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    tiny_decoder: bool = False


ROWS = [
    Row("SD-1.x teacher"),
    *(Row(name, rule=name) for name in ("b-base", "b-small")),
    Row("b-tiny, also few-step", rule="b-tiny"),
    *(Row(name, rule=name) for name in ("c-base", "c-small", "c-tiny", "c-micro")),
    Row("guidance as an input", changes={"time_cond_proj_dim": 32}),
    Row("b-tiny with a tiny decoder", rule="b-tiny", tiny_decoder=True),
    Row("SDXL teacher", "fashion_xl"),
    *(Row(name, "fashion_xl", rule=name) for name in ("koala-700m", "koala-1b")),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in COLUMNS if name != COMFYUI]
    parser.add_argument("--consumers", nargs="*", default=names, choices=names, help="columns; by default all")
    parser.add_argument("--rows", nargs="*", default=[row.name for row in ROWS], help="names, or rules of students")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "docs/consumers"))
    for row in ROWS:
        if {row.name, row.rule} & set(arguments.rows):
            from ask import ask_all  # imports torch

            for name, answer in ask_all(row, arguments.consumers):
                print(f"{row.name}: {name}: {answer}", flush=True)
                keep(name, row.name, answer)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def keep(consumer: str, row: str, answer: str) -> None:
    answers = read_answers()
    answers.setdefault(consumer, {})[row] = answer
    ANSWERS.write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_answers() -> dict[str, dict[str, str]]:
    """Column -> row -> answer."""
    answers: dict[str, dict[str, str]] = json.loads(ANSWERS.read_text(encoding="utf-8")) if ANSWERS.exists() else {}
    return answers


def in_comfyui(row: Row) -> str:
    """By its detection: stages and layers are counted, and an SD-1.x model has 320 channels in its first."""
    if row.teacher == "fashion_xl" or row.changes:
        return "no single file"
    config = dict(student_config(row.rule, SD14_UNET_CONFIG)[0]) if row.rule else SD14_UNET_CONFIG
    return "opens" if config["block_out_channels"][0] == 320 else "refuses: other widths than 320"


def page() -> str:
    answers = read_answers() | {COMFYUI: {row.name: in_comfyui(row) for row in ROWS}}
    lines = [f"| {' | '.join(['model', *COLUMNS])} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        cells = [answers.get(column, {}).get(row.name, "not run") for column in COLUMNS]
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return NOTE + PREFACE + "\n".join(lines) + "\n" + REMARKS


PREFACE = """# Who opens what

Every package and folder is made of standard parts; not every program knows every shape of a UNet. "draws the same": the
image from the same noise, to two grey levels of 255. "not run": nobody has tried it here, which says nothing against
it. "refuses": with what the program said.

"""
REMARKS = """

- **diffusers** opens the run's folder `pipeline/`, and a single file when told the folder as `config`.
- **stable-diffusion.cpp** was run: its Python binding 0.4.7, compiled for a CPU, on models of SD-1.4's full size with
  random weights, 64 x 64 pixels, two Euler steps, from torch's noise of a seed (`make test-sdcpp`). Its `model_path`
  (its command's `-m`) takes a diffusers folder as well, `runs/NAME/pipeline`, and b-tiny only as that: the numbers
  that it gives the blocks leave gaps where a stage could have another layer, while `--format single-file` numbers
  the blocks that exist, as ComfyUI and diffusers count them. The names in the folder's text encoder must begin with
  `text_model.`, as in SD-1.x's own file; transformers 5 leaves that out of files that it writes. A run copies its
  teacher's. Of a model that it refuses the binding raises nothing, and crashes when it is used. It wants 320
  channels first, which no c-* student has; its sources after that release take the width from the file, so those may
  open there. SDXL's size was not tried.
- **ComfyUI** was read, not run: its model detection, for a student of SD-1.4 in its full size. For UNets without mid
  block it has a case of its own.
- A **tiny decoder**: stable-diffusion.cpp takes it as a file of its own (`taesd_path`, in its command `--taesd`),
  `diffusion_pytorch_model.safetensors` in `runs/NAME/decoder/vae`, with the channels and blocks that `[decoder]` has by
  default (TAESD's). openvino-genai takes none: give it a package with the VAE's decoder.
- **Optimum** (`make test-interop`), **ExecuTorch** (`make test-executorch`) and the **Core ML converter** (`make
  test-coreml`, nothing is executed) were run in the environments that those make, **onnxruntime-web** in Node, by this
  project's runtime for browsers: on toys of a million weights with each rule's shape. A graph of the full size has the
  same operators.
- This project's runtime opens what `rcdeploy export` writes as ONNX and OpenVINO, of every row: it compares each
  network with torch first, or writes nothing.
"""

if __name__ == "__main__":
    sys.exit(main())
