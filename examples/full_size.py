"""Memory and seconds at full size: a random teacher of SD-1.4's shape, its cache, two steps of a student, its export.

    python examples/full_size.py                        # c-micro and b-tiny; about 15 GB of memory, some minutes
    python examples/full_size.py --students c-micro --export onnx:fp32 onnx:fp16 openvino:int8
    python examples/full_size.py --students koala-700m  # of SDXL's shape, 64 x 64 pixels; 20 GB

The weights are random, so nothing is learnt: memory and seconds are measured, on this machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from teacher_networks import build_tokenizer, noise_schedule
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.sdxl import SDXL_CONFIGS, SDXL_UNET_CONFIG

CAPTIONS = [f"a photo of number {i}" for i in range(8)]


def build_teacher(folder: Path) -> None:
    """UNet of 859.5M, CLIP ViT-L/14's text encoder, SD's VAE; fp16 on disk (2.1 GB)."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = tokenizer_of_clip(folder / "tokenizer")
    schedule: DDIMScheduler = noise_schedule()
    StableDiffusionPipeline(
        vae=vae().half(),
        text_encoder=CLIPTextModel(text_config(tokenizer, SDXL_CONFIGS["text_encoder"])).half(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(SD14_UNET_CONFIG).half(),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    (folder / "captions.txt").write_text("".join(c + "\n" for c in CAPTIONS))


def build_xl_teacher(folder: Path) -> None:
    """UNet of 2,567.5M, SDXL's two text encoders, its VAE; bf16 on disk (6.9 GB), and in memory while it is made."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizers = [tokenizer_of_clip(folder / name) for name in ("tokenizer", "tokenizer_2")]
    configs = [text_config(t, SDXL_CONFIGS[name]) for t, name in zip(tokenizers, TEXT_ENCODERS, strict=True)]
    schedule: DDIMScheduler = noise_schedule()
    torch.set_default_dtype(torch.bfloat16)
    try:
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(configs[0]),
            text_encoder_2=CLIPTextModelWithProjection(configs[1]),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=UNet2DConditionModel.from_config(SDXL_UNET_CONFIG),
            scheduler=schedule,
        ).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    (folder / "captions.txt").write_text("".join(c + "\n" for c in CAPTIONS))


TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def tokenizer_of_clip(folder: Path) -> CLIPTokenizer:
    tokenizer = build_tokenizer(CAPTIONS, folder)
    tokenizer.model_max_length = 77
    return tokenizer


def text_config(tokenizer: CLIPTokenizer, shape: dict) -> CLIPTextConfig:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPTextConfig(**{**{k: v for k, v in shape.items() if not k.startswith("_")}, **ids})


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )


def is_xl(student: str) -> bool:
    return student.startswith("koala")


def run(student: str, folder: Path, steps: int) -> dict[str, float | str]:
    """Cache (two latents, two DDIM steps, shared by the students) and `steps` steps of one sample each."""
    settings = {
        "teacher.path": folder / "teacher",
        "prompts.paired": json.dumps([str(folder / "teacher/captions.txt")]),
        "prompts.pool": "[]",
        "prompts.paired_count": 2,
        "cache.num_inference_steps": 2,
        "cache.batch_size": 1,
        "cache.folder": folder / "cache",
        "train.max_steps": steps,
        "train.global_batch_size": 1,
        "train.micro_batch_size": 1,
        "train.checkpoint_every": steps,
        "train.log_every": 1,
        "train.trackers": "[]",
        "evaluate.every": 0,
    }
    if is_xl(student):  # in fp32 the teacher alone has 10.3 GB
        settings |= {"train.mixed_precision": "bf16", "cache.resolution": 64, "conditioning.probability": "none"}
    recipe = Path(__file__).parent.parent / "recipes" / f"{student.replace('-', '_')}.toml"
    command = [sys.executable, "-m", "rcdeploy.cli.main", "distill", str(recipe), "--out", str(folder / student)]
    command += [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.monotonic()
    subprocess.run(command, check=True, cwd=folder)
    lines = [json.loads(line) for line in (folder / student / "metrics.jsonl").read_text().splitlines()]
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return {
        "student": student,
        "seconds in all": round(time.monotonic() - start),
        "seconds a step": min(line["seconds_per_step"] for line in lines),
        "loss": lines[-1]["loss"],
        "peak memory so far, GB": round(peak * 1024 / 1e9, 2),
    }


def export(student: str, folder: Path, kind: str) -> dict[str, float | str]:
    """The run's student to a package of `kind`, "format:precision", in a process of its own."""
    format_name, precision = kind.split(":")
    package = folder / f"{student}-{format_name}-{precision}"
    script = "import resource, sys; from rcdeploy.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
    script += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    arguments = ["export", str(folder / student), "--out", str(package), "--format", format_name]
    arguments += ["--precision", precision]
    start = time.monotonic()
    arguments += ["--json", "--prompts", str(folder / "teacher/captions.txt"), "--pictures", "0"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    result, _, peak = done.stdout.rpartition("peak")
    facts = json.loads(result)["facts"]
    sizes = {c.name: sum(f.stat().st_size for f in c.iterdir()) / 1e6 for c in package.iterdir() if c.is_dir()}
    return {
        "package": kind,
        "seconds": round(time.monotonic() - start),
        "peak memory, GB": round(int(peak) * 1024 / 1e9, 2),
        "MB": round(sum(sizes.values())),
        "UNet, MB": round(sizes["unet"]),
        "largest relative error": max(p["relative_error"] for p in facts["parity"]),
        "verdict": facts.get("verdict", ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/full_size"))
    parser.add_argument("--students", nargs="+", default=["c-micro", "b-tiny"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--export", nargs="*", default=[], metavar="FORMAT:PRECISION", help="of the first student")
    args = parser.parse_args()
    if len({is_xl(student) for student in args.students}) > 1:
        parser.error("KOALA's students have a teacher of their own: name them in a run of their own")
    is_of_xl = is_xl(args.students[0])
    folder = args.folder.resolve() / ("xl" if is_of_xl else "")
    if not (folder / "teacher" / "captions.txt").is_file():
        (build_xl_teacher if is_of_xl else build_teacher)(folder / "teacher")
    for student in args.students:
        print(json.dumps(run(student, folder, args.steps)), flush=True)
    for kind in args.export:
        print(json.dumps(export(args.students[0], folder, kind)), flush=True)


if __name__ == "__main__":
    main()
