"""Train an embedded teacher: a text-to-image latent diffusion model with SD-1.4's or SDXL's topology at toy width.

    python examples/train_teacher.py --out examples/teachers/fashion      # about 1.5 hours on two cores
    python examples/train_teacher.py --family sdxl --out examples/teachers/fashion_xl     # see train_xl.py

Stages of the first, each saved in --work and skipped if it exists there: vae (images <-> latents), judge (the
classifier that evaluates), unet (UNet and text encoder together, on latents encoded once). Then the fp16 folders in
diffusers' layout, the reference of the judge's Frechet distance (--reference-only: this alone, for an existing
teacher), and the teacher's metrics: 1,000 images by DDIM-25, classified by the judge.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from fashion import ATTRIBUTES, Scene, image_batches, photographs, random_images, scenes, seeded
from safetensors.torch import load_file, save_file
from teacher_networks import CONTEXT, build_text_encoder, build_tokenizer, build_unet, build_vae, noise_schedule
from train_xl import make_xl_teacher
from training_loop import train
from transformers import CLIPTextModel, CLIPTokenizer

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.frechet import Statistics
from rcdeploy.evaluate.judge import Judge
from rcdeploy.evaluate.metrics import JUDGE_REFERENCE
from rcdeploy.plots import grid
from rcdeploy.sampling import sample_images, starting_noise
from rcdeploy_runtime.files import write_json

FASHION = Path(__file__).parent / "teachers/fashion"
DEFAULTS = {
    "sd": {"work": Path("build/teacher"), "batch": 64, "unet_steps": 6000, "lr": 1e-3},
    "sdxl": {"work": Path("build/teacher_xl"), "batch": 32, "unet_steps": 500, "lr": 2e-3},
}
"""by family"""


def train_vae(args: argparse.Namespace) -> AutoencoderKL:
    photos, items = photographs(args.data, "train")
    generator, rng = seeded(args.seed)
    torch.manual_seed(args.seed)  # each stage by itself: one that is skipped changes no other
    vae = build_vae()

    def step(i: int) -> torch.Tensor:
        images = random_images(photos, items, 32, generator, rng)[0] * 2 - 1
        if i < args.vae_steps * 3 // 4:  # a quarter of the image is a quarter of the work; whole ones in the end
            top, left = torch.randint(8, 25, (2,), generator=generator).tolist()
            images = images[:, :, top : top + 32, left : left + 32]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 1e-4 * kl

    train("vae", list(vae.parameters()), step, args.vae_steps, 2e-3, lambda: None)

    # the UNet's latents will be a little wrong: the decoder learns clean outlines from those too
    def robust_step(_: int) -> torch.Tensor:
        images = random_images(photos, items, 32, generator, rng)[0] * 2 - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.sample(generator).float()
            sigma = 0.5 * torch.rand(32, 1, 1, 1, generator=generator) * latents.std()
            decoded = vae.decode(latents + sigma * torch.randn(latents.shape, generator=generator)).sample.float()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images)

    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    train("decoder", decoder, robust_step, args.decoder_steps, 7e-4, lambda: None)
    return vae.eval()


def train_judge(args: argparse.Namespace) -> tuple[Judge, dict[str, float]]:
    """-> the judge, and its accuracy on the test split by attribute."""
    photos, items = photographs(args.data, "train")
    generator, rng = seeded(args.seed)
    torch.manual_seed(args.seed)
    judge = Judge(ATTRIBUTES)

    def step(_: int) -> torch.Tensor:
        images, chosen = random_images(photos, items, 128, generator, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = judge(images)
        return torch.stack(
            [F.cross_entropy(logits[a].float(), torch.tensor([getattr(s, a) for s in chosen])) for a in ATTRIBUTES]
        ).sum()

    train("judge", list(judge.parameters()), step, args.judge_steps, 3e-3, lambda: None)
    judge.eval()
    correct: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    for images, chosen in image_batches(*photographs(args.data, "t10k"), 500, generator, rng):
        for name, verdict in judge.verdicts(images, [s.captions()[0] for s in chosen]).items():
            correct[name] += verdict.float().tolist()
    return judge, {name: sum(c) / len(c) for name, c in correct.items()}


@torch.inference_mode()
def write_reference(args: argparse.Namespace) -> None:
    """Statistics of the judge's features of the test split, each photograph once in a random scene."""
    judge = Judge.load(args.out / "judge")
    batches = image_batches(*photographs(args.data, "t10k"), 250, *seeded(args.seed + 3))
    features = [judge.features(images) for images, _ in batches]
    # fp32 keeps the file small
    Statistics.of(torch.cat(features)).save(args.out / "judge" / JUDGE_REFERENCE, torch.float32)


@torch.inference_mode()
def encode(
    vae: AutoencoderKL, photos: torch.Tensor, items: torch.Tensor, batch_size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, list[Scene]]:
    """Every photograph once in a random scene -> latent means and stds [n, c, 8, 8], unscaled; scenes."""
    means = []
    stds = []
    all_scenes = []
    for images, chosen in image_batches(photos, items, batch_size, *seeded(seed)):
        posterior = vae.encode(images * 2 - 1).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
        all_scenes += chosen
    return torch.cat(means), torch.cat(stds), all_scenes


def train_unet(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, args: argparse.Namespace
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    means, stds, chosen = encode(vae, *photographs(args.data, "train"), 250, args.seed + 1)
    means = means.clone()
    stds = stds.clone()
    scale = vae.config.scaling_factor
    ids = tokenizer(
        [c for s in chosen for c in s.captions()], padding="max_length", truncation=True, return_tensors="pt"
    )
    ids = ids.input_ids.view(len(chosen), 5, CONTEXT)
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    torch.manual_seed(args.seed)
    unet = build_unet()
    text_encoder = build_text_encoder(tokenizer)
    schedule = noise_schedule()
    if args.begin_from:
        unet = UNet2DConditionModel.from_pretrained(args.begin_from / "unet").float()
        text_encoder = CLIPTextModel.from_pretrained(args.begin_from / "text_encoder").float()
    params = [*unet.parameters(), *text_encoder.parameters()]
    ema = EMAModel(params, decay=0.999, use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(args.seed + 2)
    print(f"{sum(p.numel() for p in params):,} parameters in UNet and text encoder", flush=True)

    def step(i: int) -> torch.Tensor:
        rows = torch.randint(0, len(means), (args.batch,), generator=generator)
        x0 = (means[rows] + stds[rows] * torch.randn(args.batch, *means.shape[1:], generator=generator)) * scale
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (args.batch,), generator=generator)
        tokens = ids[rows, torch.randint(0, 5, (args.batch,), generator=generator)]
        dropped = torch.rand(args.batch, 1, generator=generator) < 0.1
        embeds = text_encoder(torch.where(dropped, empty, tokens)).last_hidden_state
        predicted = unet(schedule.add_noise(x0, noise, t), t, embeds).sample
        snr = schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t])
        weight = snr.clamp(max=5) / snr  # min-SNR-5: most of a small model's steps go to shape and colour
        return ((predicted - noise).square().mean((1, 2, 3)) * weight).mean()

    train("unet", params, step, args.unet_steps, args.lr, lambda: ema.step(params))
    ema.copy_to(params)
    return unet.eval(), text_encoder.eval()


def measure(args: argparse.Namespace, captions: list[str]) -> None:
    """The judge's verdicts on 1,000 images of random captions by DDIM-25, and a row of 8 of them as samples.png."""
    teacher = LatentDiffusionModel(str(args.out))
    judge = Judge.load(args.out / "judge")
    prompts = random.Random(args.seed).sample(captions, 1000)
    start = time.monotonic()
    noise = starting_noise(args.seed, range(len(prompts)), teacher.latent_shape())
    images = sample_images(teacher, prompts, noise, batch_size=50, guidance_scale=args.guidance)
    seconds = (time.monotonic() - start) / len(prompts)
    accuracy = {name: v.float().mean().item() for name, v in judge.verdicts(images, prompts).items()}
    result = {
        "judge_on_the_test_split": json.loads((args.work / "judge.json").read_text())["test_accuracy"],
        "teacher": {"pictures": 1000, "ddim_steps": 25, "guidance_scale": args.guidance, **accuracy},
    }
    write_json(args.out / "judge/accuracy.json", result)
    grid([(f"guidance {args.guidance:g}", images[:8])], prompts[:8], args.out / "samples.png")
    print(json.dumps(result), f"{seconds:.3f} s an image")


def make_vae(args: argparse.Namespace) -> AutoencoderKL:
    file = args.work / "vae.safetensors"
    vae = build_vae().eval()
    if file.exists():
        vae.load_state_dict(load_file(file))
    else:
        vae = train_vae(args)
        save_file(vae.state_dict(), file)
    if args.begin_from:  # the UNet that goes on knows latents at its own scale
        scale = json.loads((args.begin_from / "vae/config.json").read_text())["scaling_factor"]
    else:
        photos, items = photographs(args.data, "train")
        means, stds, _ = encode(vae, photos[:500], items[:500], 500, args.seed)
        scale = round(1 / math.sqrt(means.var() + stds.square().mean()), 5)
    vae.register_to_config(scaling_factor=scale)
    return vae


def make_judge(args: argparse.Namespace) -> Judge:
    if not (args.work / "judge/config.json").exists():
        judge, accuracy = train_judge(args)
        (args.work / "judge.json").write_text(json.dumps({"test_accuracy": accuracy}, indent=1) + "\n")
        print("judge on the test split:", accuracy, flush=True)
        judge.save(args.work / "judge")
    return Judge.load(args.work / "judge")


def make_unet(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, args: argparse.Namespace
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    unet_file, text_file = (args.work / f"{name}.safetensors" for name in ("unet", "text_encoder"))
    if unet_file.exists():
        unet = build_unet()
        text_encoder = build_text_encoder(tokenizer)
        unet.load_state_dict(load_file(unet_file))
        text_encoder.load_state_dict(load_file(text_file))
    else:
        unet, text_encoder = train_unet(vae, tokenizer, args)
        save_file(text_encoder.state_dict(), text_file)
        save_file(unet.state_dict(), unet_file)
    return unet, text_encoder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["sd", "sdxl"], default="sd")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--decoder-steps", type=int, default=700)
    parser.add_argument("--judge-steps", type=int, default=4000)
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale of the evaluated images")
    parser.add_argument("--unet-steps", type=int)
    parser.add_argument("--lr", type=float, help="of UNet and text encoder")
    parser.add_argument("--begin-from", type=Path, help="a teacher whose UNet, text encoder and tokenizer go on")
    parser.add_argument("--bf16", action="store_true", help="VAE and judge: twice as fast on processors with AMX")
    parser.add_argument("--reference-only", action="store_true", help="only judge/reference.safetensors of --out")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="sdxl: the teacher that draws its pictures")
    parser.add_argument("--pictures", type=int, default=768, help="sdxl: captions to draw")
    parser.add_argument("--shallow-steps", type=int, default=1500, help="sdxl: before the UNet is deep")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="sdxl: steps")
    args = parser.parse_args()
    for key, value in DEFAULTS[args.family].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args


def make_teacher(args: argparse.Namespace) -> None:
    """--out, of the photographs in --data."""
    vae = make_vae(args)
    judge = make_judge(args)
    captions = [c for s in scenes() for c in s.captions()]
    tokenizer_captions = captions
    if args.begin_from:
        tokenizer_captions = gzip.decompress((args.begin_from / "captions.txt.gz").read_bytes()).decode().splitlines()
    tokenizer = build_tokenizer(tokenizer_captions, args.work / "tokenizer")
    unet, text_encoder = make_unet(vae, tokenizer, args)

    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(args.out)
    build_tokenizer(tokenizer_captions, args.out / "tokenizer")
    judge.save(args.out / "judge")
    write_reference(args)
    with gzip.GzipFile(args.out / "captions.txt.gz", "wb", mtime=0) as f:
        f.write("".join(c + "\n" for c in captions).encode())
    measure(args, captions)


def main() -> None:
    args = arguments()
    if args.reference_only:
        write_reference(args)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if args.family == "sd":
        make_teacher(args)
    else:
        make_xl_teacher(args)


if __name__ == "__main__":
    main()
