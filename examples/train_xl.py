"""The SDXL-shaped teacher (train_teacher.py --family sdxl): it learns from the fashion teacher, not from photographs.

Stages, each saved in --work; the same command goes on where it stopped: the latent cache (pictures that the fashion
teacher drew of captions for training), those of them that the judge reads rightly, and UNet and second text encoder
together, from checkpoints. Their target is the noise that the fashion teacher's UNet predicts. VAE, first text encoder
and judge are the fashion teacher's, as they are; the UNet begins with its weights where it has the same part.
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import EMAModel
from fashion import IMAGE_SIZE
from teacher_networks import (
    XL_CONTEXT,
    build_second_text_encoder,
    build_xl_unet,
    copy_first_weights,
    noise_schedule,
    xl_noise_schedule,
)
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rcdeploy import checkpoint
from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.condition import Condition, predict
from rcdeploy.conditioning import exponential
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.evaluate.judge import Judge
from rcdeploy.latent_cache import LatentCache
from rcdeploy.plots import grid
from rcdeploy.random_streams import TRAINING, generator
from rcdeploy.recipe import Cache, Prompts, Recipe, Teacher
from rcdeploy.sampling import sample_images, starting_noise
from rcdeploy.storage.tensors import load_tensors, save_tensors
from rcdeploy.text_encoding import SDXL_LAYER, time_ids
from rcdeploy_runtime.files import read_json, write_json

CAPTIONS = "captions_train.txt.gz"
NULL_PROBABILITY = 0.1
SCHEDULE = noise_schedule()
"""SD-1.4's betas are SDXL's; this class adds noise"""
COPIED = ("vae", "text_encoder", "judge")
"""folders of the fashion teacher that this one shares, byte for byte"""


@dataclass(frozen=True)
class Pictures:
    """What the networks learn from: n scaled latents [n, c, 8, 8], and tokens of all captions and of "", the last.

    captions: [n], each latent's row of the tokens. ids: of the fashion teacher's tokenizer, [captions, CONTEXT].
    ids_2: of the second tokenizer, [captions, XL_CONTEXT].
    """

    latents: Tensor
    captions: Tensor
    ids: Tensor
    ids_2: Tensor


def log(message: str) -> None:
    print(time.strftime("%H:%M:%S"), message, flush=True)


def captions_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def draw_pictures(args: argparse.Namespace) -> LatentCache:
    """The fashion teacher's latent cache of some of its captions for training."""
    recipe = Recipe(
        name="fashion_xl",
        teacher=Teacher(path=str(args.fashion)),
        prompts=Prompts(paired=[str(args.fashion / CAPTIONS)], paired_count=args.pictures),
        cache=Cache(
            folder=str(args.work / "cache"),
            num_inference_steps=12,  # latents need not be finished pictures: the target is what the teacher predicts
            guidance_scale=args.guidance,
            batch_size=64,
            shard_size=256,
            seed=args.seed,
        ),
    )
    teacher = LatentDiffusionModel(str(args.fashion))
    return make_latent_cache(recipe, teacher, lambda _, done, total: log(f"pictures {done}/{total}"), log)


@torch.inference_mode()
def right_rows(cache: LatentCache, args: argparse.Namespace) -> Tensor:
    """Rows of the pictures of which the judge reads all that their caption names."""
    file = args.work / "right.safetensors"
    if not file.exists():
        judge = Judge.load(args.fashion / "judge")
        teacher = LatentDiffusionModel(str(args.fashion))
        right = []
        for start in range(0, len(cache), 256):
            rows = range(start, min(start + 256, len(cache)))
            verdicts = judge.verdicts(teacher.decode(cache.latents(rows)), cache.prompts.take(list(rows)))
            right.append(torch.stack(list(verdicts.values())).all(0))
        save_tensors(file, {"rows": torch.cat(right).nonzero().flatten()})
    return load_tensors(file)["rows"]


def tokenizers(fashion: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The fashion teacher's for fewer tokens, and the same padded as SDXL's second pads."""
    first, second = (CLIPTokenizer.from_pretrained(fashion / "tokenizer") for _ in range(2))
    first.model_max_length = second.model_max_length = XL_CONTEXT
    second.pad_token = "!"
    return first, second


def training_pictures(args: argparse.Namespace) -> Pictures:
    cache = draw_pictures(args)
    rows = right_rows(cache, args).tolist()
    log(f"the judge reads {len(rows):,} of {len(cache):,} pictures rightly")
    texts = [*captions_of(args.fashion / CAPTIONS), ""]
    index = {text: i for i, text in enumerate(texts)}
    own, second = CLIPTokenizer.from_pretrained(args.fashion / "tokenizer"), tokenizers(args.fashion)[1]
    ids, ids_2 = (t(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in (own, second))
    captions = torch.tensor([index[caption] for caption in cache.prompts.take(rows)])
    return Pictures(cache.latents(rows), captions, ids, ids_2)


def shallow_networks(teacher: LatentDiffusionModel, args: argparse.Namespace) -> nn.ModuleDict:
    """With one transformer layer wherever there will be more: most of what is to learn costs half as much so."""
    torch.manual_seed(args.seed)
    unet = build_xl_unet(depths=(1, 1, 1))
    copy_first_weights(unet, teacher.unet)
    return nn.ModuleDict({"unet": unet, "text_encoder_2": build_second_text_encoder(teacher.tokenizer)})


def deepened(networks: nn.ModuleDict, args: argparse.Namespace) -> nn.ModuleDict:
    """The same with all transformer layers; those that are new add nothing to the hidden states yet."""
    torch.manual_seed(args.seed + 1)
    unet = build_xl_unet()
    known = networks["unet"].state_dict()
    for name, weights in unet.state_dict().items():  # these share memory with the parameters
        if name in known:
            weights.copy_(known[name])
        elif re.search(r"(attn\d\.to_out\.0|ff\.net\.2)\.\w+$", name):
            weights.zero_()
    return nn.ModuleDict({"unet": unet, "text_encoder_2": networks["text_encoder_2"]}).train()


def step_loss(
    networks: nn.ModuleDict, teacher: LatentDiffusionModel, data: Pictures, step: int, args: argparse.Namespace
) -> Tensor:
    """The distance from the teacher's prediction at step `step`, whose batch is a function of (seed, step) alone."""
    rng = generator(args.seed, TRAINING, step)
    rows = torch.from_numpy(rng.integers(0, len(data.latents), args.batch))
    x_0 = data.latents[rows]
    noise = torch.from_numpy(rng.standard_normal(tuple(x_0.shape), np.float32))
    t = rng.integers(0, 1000, args.batch)
    # random conditioning, as this project's students learn
    unpaired = torch.from_numpy(rng.random(args.batch) < exponential(t / 1000))
    captions = torch.from_numpy(rng.integers(0, len(data.ids) - 1, args.batch))
    captions = torch.where(unpaired, captions, data.captions[rows])
    kept = torch.from_numpy(rng.random(args.batch) >= NULL_PROBABILITY)
    captions = torch.where(kept, captions, len(data.ids) - 1)
    timesteps = torch.from_numpy(t)
    x_t = SCHEDULE.add_noise(x_0, noise, timesteps)
    with torch.no_grad():
        first = teacher.text_encoder(data.ids[captions], output_hidden_states=True)
        target = teacher.unet(x_t, timesteps, first.last_hidden_state).sample

    second = networks["text_encoder_2"](data.ids_2[captions], output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[SDXL_LAYER][:, :XL_CONTEXT], second.hidden_states[SDXL_LAYER]], dim=-1)
    pooled = second.text_embeds * kept[:, None]
    sizes = time_ids((IMAGE_SIZE, IMAGE_SIZE), pooled)
    condition = Condition(hidden * kept[:, None, None], {"text_embeds": pooled, "time_ids": sizes})
    noise_pred = predict(networks["unet"], x_t, timesteps, condition)
    snr = SCHEDULE.alphas_cumprod[timesteps] / (1 - SCHEDULE.alphas_cumprod[timesteps])
    weight = snr.clamp(max=5) / snr  # min-SNR-5, as the fashion teacher was trained
    return ((noise_pred - target).square().mean((1, 2, 3)) * weight).mean()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A warm-up of 2 %, then cosine to zero."""
    warmup = max(steps // 50, 1)
    progress = max(step - warmup, 0) / max(steps - warmup, 1)
    return peak * min((step + 1) / warmup, 1) * (1 + math.cos(math.pi * progress)) / 2


def train_networks(
    name: str,
    networks: nn.ModuleDict,
    teacher: LatentDiffusionModel,
    data: Pictures,
    steps: int,
    args: argparse.Namespace,
) -> nn.ModuleDict:
    """The networks with their EMA weights after `steps` steps, from the newest checkpoint in --work/NAME on."""
    folder = args.work / name
    optimizer = torch.optim.AdamW(networks.parameters(), args.lr, weight_decay=1e-2, fused=True)
    ema = EMAModel(networks.parameters(), decay=0.999, use_ema_warmup=True, power=0.75, foreach=True)
    step = checkpoint.newest_whole(folder, log) or 0
    if step:
        checkpoint.load(folder, step, networks, optimizer, ema, None)
    log(f"{name}: {sum(p.numel() for p in networks.parameters()):,} parameters to train, from step {step}")
    start, first, running = time.monotonic(), step, 0.0
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, args.lr)
        loss = step_loss(networks, teacher, data, step, args)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        ema.step(networks.parameters())
        step += 1
        running += loss.item()
        if step % 50 == 0:
            seconds = (time.monotonic() - start) / (step - first)
            left = seconds * (steps - step) / 60
            log(f"{name} {step}/{steps} loss {running / 50:.5f}, {seconds:.3f} s a step, {left:.0f} min left")
            running = 0.0
        if step % args.checkpoint_every == 0 or step == steps:
            checkpoint.save(folder, networks, optimizer, ema, None, {"step": step})
            checkpoint.prune(folder, 2, None)
    ema.copy_to(networks.parameters())
    return networks.eval()


def save_teacher(networks: nn.ModuleDict, teacher: LatentDiffusionModel, args: argparse.Namespace) -> None:
    """--out as a diffusers folder in fp16."""
    first, second = tokenizers(args.fashion)
    StableDiffusionXLPipeline(
        vae=teacher.vae,
        text_encoder=teacher.text_encoder,
        text_encoder_2=networks["text_encoder_2"],
        tokenizer=first,
        tokenizer_2=second,
        unet=networks["unet"],
        scheduler=xl_noise_schedule(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).to(dtype=torch.float16).save_pretrained(args.out)
    for name in COPIED:
        shutil.copytree(args.fashion / name, args.out / name, dirs_exist_ok=True)
    for folder in ("tokenizer", "tokenizer_2"):
        for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, transformers 5 does not write them
            shutil.copy(args.fashion / "tokenizer" / name, args.out / folder / name)


def describe(args: argparse.Namespace) -> None:
    """Eight pictures of held-out captions as samples.png; of the judge's accuracies its own alone."""
    accuracy = read_json(args.fashion / "judge/accuracy.json")
    write_json(args.out / "judge/accuracy.json", {key: accuracy[key] for key in accuracy if key != "teacher"})
    prompts = random.Random(args.seed).sample(captions_of(args.fashion / "captions_held_out.txt.gz"), 8)
    model = LatentDiffusionModel(str(args.out))
    noise = starting_noise(args.seed, range(len(prompts)), model.latent_shape())
    images = sample_images(model, prompts, noise, guidance_scale=args.guidance)
    grid([(f"guidance {args.guidance:g}", images)], prompts, args.out / "samples.png")


def make_xl_teacher(args: argparse.Namespace) -> None:
    """--out: the whole folder, but for its card."""
    data = training_pictures(args)
    teacher = LatentDiffusionModel(str(args.fashion))
    shallow = train_networks("shallow", shallow_networks(teacher, args), teacher, data, args.shallow_steps, args)
    networks = train_networks("unet", deepened(shallow, args), teacher, data, args.unet_steps, args)
    save_teacher(networks, teacher, args)
    describe(args)
