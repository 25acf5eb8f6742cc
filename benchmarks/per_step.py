"""Seconds a UNet step and seconds for the rest, of programs side by side: `python benchmarks/runtime.py --full-size`.

A program generates with one step and with more; the difference is the steps' time, what is left of the first is text
encoder and VAE decoder. So nothing is measured inside a program, and all are measured alike. Memory is the peak of
the program's own process.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "diffusers (torch), fp32"


@dataclass(frozen=True)
class Program:
    """kind: as runtime.py's worker knows it. package: format and precision that it opens; None: the diffusers folder.
    precision: of the arithmetic, for programs whose package does not say it."""

    name: str
    kind: str
    package: tuple[str, str] | None
    precision: str


PROGRAMS = (
    Program(BASELINE, "diffusers", None, "fp32"),
    Program("diffusers (torch), bf16", "diffusers", None, "bf16"),
    Program("ours on ONNX Runtime, fp32", "ours", ("onnx", "fp32"), "fp32"),
    Program("ours on OpenVINO, fp32", "ours", ("openvino", "fp32"), "fp32"),
    Program("ours on OpenVINO, bf16", "ours", ("openvino", "bf16"), "bf16"),
    Program("ours on OpenVINO, int8", "ours", ("openvino", "int8"), "int8"),
    Program("openvino-genai, bf16", "openvino-genai", ("openvino", "bf16"), "bf16"),
)


@dataclass(frozen=True)
class Measured:
    """Seconds of one UNet step, seconds of everything beside the steps, peak memory of the process in GB."""

    step: float
    rest: float
    memory: float


def build_c_micro(folder: Path) -> Path:
    """A diffusers folder of SD-1.4's shape with c-micro in place of its UNet, random weights, fp16 on disk."""
    student = folder / "c-micro"
    if (student / "model_index.json").is_file():
        return student
    sys.path.insert(0, str(ROOT / "examples"))
    from full_size import build_teacher

    from rcdeploy.student.build import build_student
    from rcdeploy.student.sd14 import SD14_UNET_CONFIG
    from rcdeploy.student.spec import student_config

    if not (folder / "teacher/model_index.json").is_file():
        build_teacher(folder / "teacher")
    config, _ = student_config("c-micro", SD14_UNET_CONFIG)
    beside = folder / "c-micro.partial"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder / "teacher", beside, ignore=shutil.ignore_patterns("unet"))
    build_student(config, 0).half().save_pretrained(beside / "unet")
    beside.rename(student)
    return student


def export(source: Path, work: Path, package: tuple[str, str]) -> Path:
    """The package of `source` in a format and precision, made once."""
    target = work / f"{source.name}-{'-'.join(package)}"
    if not (target / "manifest.json").is_file():
        command = [sys.executable, "-m", "rcdeploy.cli.main", "export", str(source), "--format", package[0]]
        subprocess.run([*command, "--precision", package[1], "--pictures", "0", "--out", str(target), "-q"], check=True)
    return target


def measure(ask: Callable[[str], float], steps: int, turns: int) -> Measured:
    """Medians over the turns. ask: a number of steps -> seconds of an image, "memory" -> GB at the peak.

    steps: of the longer of a turn's two images.
    """
    short, long = [], []
    for _ in range(turns):
        short.append(ask("1"))
        long.append(ask(str(steps)))
    step = statistics.median((b - a) / (steps - 1) for a, b in zip(short, long, strict=True))
    return Measured(step, statistics.median(short) - step, ask("memory"))


def table(rows: Sequence[tuple[str, Measured]], steps: int) -> str:
    """rows: (program, what was measured), the baseline first; the last columns are of an image of `steps` steps."""
    base = rows[0][1]
    whole = steps * base.step + base.rest
    lines = [
        f"| | s a UNet step | s beside the steps | memory, GB | s an image of {steps} steps | times {rows[0][0]} |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in rows:
        image = steps * m.step + m.rest
        lines.append(f"| {name} | {m.step:.3g} | {m.rest:.3g} | {m.memory:.1f} | {image:.3g} | {whole / image:.2f} |")
    return "\n".join(lines)
