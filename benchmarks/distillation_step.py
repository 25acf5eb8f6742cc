"""One training step: rcdeploy's loop against a plain one, in turns, in one process.

    python benchmarks/distillation_step.py [--steps 40] [--batch 32] [--student c-micro] [--compile] [--threads N]

Ours is `rcdeploy distill` itself: its loop reports after every step, and the plain loop takes its own step right there.
So other work on the machine affects both alike: read the ratio. Same teacher, first weights, taps, losses, optimizer,
EMA, batch and threads; both sample timesteps and prompts with the same probabilities, not the same numbers.

The plain loop is the authors' method in our code: a data loader that reads one file a latent and tokenises
captions, the text encoder for every sample of every step, every term of the loss gathered and read as a number in each
step. In fp32, as everything on a processor; benchmarks/gpu.py takes it to a GPU. Their captions in a pandas Series are
in benchmarks/prompt_pool.py.

Beside the seconds: the multiply-accumulates of a step, counted while it runs, so that its rate can be compared with
what this machine reaches on plain matrix products; and the bytes that clipping, optimizer and EMA must move.
"""

from __future__ import annotations

import contextlib
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from beside_plain import command, medians_and_ratios, quickstart
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from rcdeploy.bench.macs import unet_macs
from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill import loop
from rcdeploy.distill.distillation import make_student
from rcdeploy.distill.features import feature_taps
from rcdeploy.distill.step import StudentWithProjectors
from rcdeploy.latent_cache import LatentCache
from rcdeploy.machine import gemm_rate
from rcdeploy.recipe import Recipe

WARM_UP = 3
"""steps of each that are not timed; the first of them is counted"""


class Pairs(Dataset[dict[str, Any]]):
    """A file a latent, and its caption's ids; with probability p(t) the caption is any of the recipe's file."""

    def __init__(self, folder: Path, cache: LatentCache, tokenizer: Any, recipe: Recipe) -> None:
        self.files: list[Path] = []
        self.tokenizer = tokenizer
        self.conditioning = recipe.conditioning
        self.captions = [cache.prompts[i] for i in range(len(cache))]
        with gzip.open(recipe.prompts.pool[0], "rt", encoding="utf-8") as lines:
            self.pool = lines.read().splitlines()
        folder.mkdir()
        for i in range(len(cache)):
            self.files.append(folder / f"{i}.npy")
            np.save(self.files[-1], cache.latents([i])[0].half().numpy())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        timestep = int(np.random.randint(1000))
        caption = self.captions[i]
        c = self.conditioning
        if np.random.random() < 1 / (1 + np.exp(-c.steepness * (timestep / 1000 - c.centre))):
            caption = self.pool[np.random.randint(len(self.pool))]
        if np.random.random() < c.null_probability:
            caption = ""
        ids = self.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
        return {"latent": torch.from_numpy(np.load(self.files[i])).float(), "timestep": timestep, "ids": ids}


def plain_loop(recipe: Recipe, teacher: LatentDiffusionModel, pairs: Pairs) -> Iterator[dict[str, float]]:
    """A step at every next(): yields the losses of the step as numbers. teacher: on accelerate's device."""
    student, config, _ = make_student(recipe.student, teacher)
    taps = feature_taps(teacher.unet_config, config)
    train = recipe.train
    project = torch.nn.ModuleList(
        torch.nn.Conv2d(tap.student_channels, tap.teacher_channels, 1) if tap.needs_projector else torch.nn.Identity()
        for tap in taps
    )
    accelerator = Accelerator(mixed_precision=train.mixed_precision)
    parameters = [*student.parameters(), *project.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    loader = DataLoader(pairs, batch_size=train.global_batch_size, shuffle=True, drop_last=True)
    student, project, optimizer, loader = accelerator.prepare(student.train(), project, optimizer, loader)
    ema = EMAModel(student.parameters(), decay=train.ema_decay)
    teacher_features = _record(teacher.unet, [tap.teacher for tap in taps])
    student_features = _record(accelerator.unwrap_model(student), [tap.student for tap in taps])
    while True:
        for batch in loader:
            noise = torch.randn_like(batch["latent"])
            noisy = teacher.schedule.add_noise(batch["latent"], noise, batch["timestep"])
            prompt_embeds = teacher.text_encoder(batch["ids"])[0]
            with torch.no_grad():
                teacher_output = teacher.unet(noisy.to(teacher.dtype), batch["timestep"], prompt_embeds).sample
            student_output = student(noisy, batch["timestep"], prompt_embeds).sample
            output = F.mse_loss(student_output.float(), teacher_output.float())
            taps_of_both = zip(project, student_features.values(), teacher_features.values(), strict=True)
            feature = sum(F.mse_loss(p(s.float()), t.float()) for p, s, t in taps_of_both)
            loss = recipe.loss.output * output + recipe.loss.feature * feature
            terms = {"loss": loss, "output": output, "feature": feature}
            losses = {k: accelerator.gather(v.repeat(train.global_batch_size)).mean().item() for k, v in terms.items()}
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(student.parameters())
            yield losses


def _record(module: torch.nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Outputs of the named modules in the latest forward pass."""
    features: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(_module: Any, _inputs: Any, output: Any) -> None:
            features[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)

        return record

    for name in names:
        module.get_submodule(name).register_forward_hook(hook(name))
    return features


class Turns:
    """Progress of `distill`: whenever it has done a step, the plain loop does one. Records the seconds of both."""

    def __init__(self, plain: Iterator[dict[str, float]], *, counts_ours: bool) -> None:
        """counts_ours: what is compiled cannot be counted."""
        self.plain = plain
        self.counts_ours = counts_ours
        self.start = 0.0
        self.counting = contextlib.ExitStack()
        self.seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        self.macs: dict[str, int] = {}
        self.plain_losses: list[float] = []

    def __call__(self, stage: str, completed: int, _total: int, _metrics: Mapping[str, float] | None = None, /) -> None:
        if stage != "distill":
            return
        ours = time.perf_counter() - self.start
        counted = completed == 2  # by then both have everything in place
        self.counting.close()
        with self._count("plain") if counted else contextlib.nullcontext():
            start = time.perf_counter()
            self.plain_losses.append(next(self.plain)["output"])
            plain = time.perf_counter() - start
        if completed > WARM_UP:
            self.seconds["ours"].append(ours)
            self.seconds["plain"].append(plain)
        if completed == 1 and self.counts_ours:
            self.counting.enter_context(self._count("ours"))  # closed when this is called again: around our whole step
        self.start = time.perf_counter()

    @contextlib.contextmanager
    def _count(self, name: str) -> Iterator[None]:
        """Count matrix products until the block ends; attention as products, because the counter knows only those."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield
        self.macs[name] = counter.get_total_flops() // 2


def measure(steps: int = 40, batch: int = 32, student: str = "c-micro", compile: bool = False) -> dict[str, Any]:
    """Run both loops in turns, `steps` timed steps each. -> the seconds of each, and MACs. compile: ours."""
    settings = {
        "student.name": student,
        "student.init": "sliced" if student.startswith("c-") else "teacher",
        "cache.folder": "cache",
        "prompts.paired_count": 256,
        "cache.num_inference_steps": 2,
        "train.global_batch_size": batch,
        "train.max_steps": steps + WARM_UP,
        "train.log_every": steps + WARM_UP,
        "train.checkpoint_every": 10**6,
        "train.lr_schedule": "constant",
        "train.warmup_steps": 0,
        "train.compile": compile,
        "train.trackers": [],
        "evaluate.every": 0,
    }
    with tempfile.TemporaryDirectory(prefix="rcdeploy-step-") as name, contextlib.chdir(name):
        recipe = quickstart(settings)
        teacher = LatentDiffusionModel(recipe.teacher.path)
        pairs = Pairs(Path("latents"), make_latent_cache(recipe, teacher), teacher.tokenizer, recipe)
        turns = Turns(plain_loop(recipe, teacher, pairs), counts_ours=not compile)
        state = loop.distill(recipe, Path("run"), turns, lambda _text: None)
    student_unet, student_config, _ = make_student(recipe.student, teacher)
    model = StudentWithProjectors(student_unet, feature_taps(teacher.unet_config, student_config))
    trained, unet = (sum(p.numel() for p in m.parameters()) for m in (model, model.unet))
    length = teacher.tokenizer.model_max_length
    teacher_macs = unet_macs(teacher.unet_config, None, length).total
    student_macs = unet_macs(student_config, None, length).total
    threads = torch.get_num_threads()
    return {
        "settings": {"student": student, "batch": batch, "steps": steps, "threads": threads, "compile": compile},
        "seconds": turns.seconds,
        "macs": turns.macs,
        "macs_needed": batch * (teacher_macs + 3 * student_macs),
        # clipping reads and scales gradients, AdamW reads four arrays and writes three, EMA reads two and writes one
        "update_bytes": 4 * (trained * (3 + 7) + unet * 3),
        "mean_output_loss": {"ours": state.metrics["output"], "plain": statistics.mean(turns.plain_losses)},
        "gemm_macs_per_second": gemm_rate(),
    }


def markdown(result: dict[str, Any]) -> str:
    s = result["settings"]
    rate = result["gemm_macs_per_second"]
    median, ratios = medians_and_ratios(result["seconds"])
    low = ratios[len(ratios) // 10]
    high = ratios[-1 - len(ratios) // 10]
    lines = [
        f"{s['student']} of the Fashion teacher, batch {s['batch']}, {s['threads']} threads, {s['steps']} steps each"
        + (", ours compiled" if s.get("compile") else ""),
        "",
        "| | s a step (median) | spread | GMACs a step | of the GEMM rate | mean output loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in result["seconds"].items():
        macs = result["macs"].get(name)
        counted = f"{macs / 1e9:.3f} | {macs / median[name] / rate:.0%}" if macs else "|"
        lines.append(
            f"| {name} | {median[name]:.4f} | {min(seconds):.4f} to {max(seconds):.4f} | {counted} | "
            f"{result['mean_output_loss'][name]:.3f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Plain / ours: {median['plain'] / median['ours']:.3f} (nine tenths of the pairs {low:.3f} to {high:.3f}).",
            f"The UNets alone need {result['macs_needed'] / 1e9:.3f} GMACs a step (teacher once, student three times: "
            f"its backward pass is two): {result['macs_needed'] / rate:.4f} s at this machine's {rate / 1e9:.1f} "
            f"GMAC/s of fp32 products. Clipping, AdamW and EMA move {result['update_bytes'] / 1e6:.0f} MB.",
        ]
    )


if __name__ == "__main__":
    command(__doc__, measure, markdown)
