"""The estimate compared with real runs and with published ones."""

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from rcdeploy import cache_latents
from rcdeploy.bench.macs import unet_macs
from rcdeploy.cli.main import app
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.distill.loop import distill
from rcdeploy.estimate import durations
from rcdeploy.estimate.durations import SAMPLING_EFFICIENCY, TRAINING_EFFICIENCY
from rcdeploy.estimate.estimate import estimate, find_gpu
from rcdeploy.estimate.memory import GPU_ALLOWANCE, memory_bytes
from rcdeploy.estimate.on_meta import cost_of
from rcdeploy.estimate.plan import Plan, make_plan
from rcdeploy.estimate.stages import Stage, unpaired_share
from rcdeploy.estimate.workload import PromptCount, count_prompts
from rcdeploy.machine import GPUS, describe, gemm_rate
from rcdeploy.prompts.recipe_pool import open_pool
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy.student.sd14 import SD14_UNET_CONFIG
from rcdeploy.student.spec import student_config
from rcdeploy_runtime.errors import RcdeployError

estimate_module = importlib.import_module("rcdeploy.estimate.estimate")
ROOT = Path(__file__).parent.parent
run = CliRunner().invoke
Recipes = Callable[..., Recipe]


def sd14(student: str, **keys: Any) -> Recipe:
    settings = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in keys.items()]
    settings.append("prompts.paired_count=1000")
    return load_recipe(ROOT / f"recipes/{student}.toml", settings, check_files=False)


def test_cache_and_pool_are_as_large_as_estimated(tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(prompts={"paired_exclude": ["blue"]})
    teacher = LatentDiffusionModel(recipe.teacher.path)
    batch_sizes: list[int] = []
    original = teacher.unet.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batch_sizes.append(len(sample))
        return original(sample, *args, **kwargs)

    monkeypatch.setattr(teacher.unet, "forward", forward)
    plan = make_plan(recipe, 1, torch.float32)
    cache, pool = (next(s for s in plan.stages if s.name == name) for name in ("latent cache", "prompt pool"))
    folder = cache_latents.make_latent_cache(recipe, teacher).folder
    assert sum(batch_sizes) == cache.samples["teacher"] == 12 * 2 * 2  # prompts, steps, branches
    files = [f for f in folder.rglob("*") if f.suffix in (".safetensors", ".bin", ".txt")]
    assert len(files) == 3 + 2 + 1
    assert sum(f.stat().st_size for f in files) == cache.disk_bytes
    built = open_pool(recipe)
    assert PromptCount(len(built), built.manifest.facts["bytes"]) == count_prompts(recipe).pool
    assert sum((built.folder / name).stat().st_size for name in built.manifest.files) == pool.disk_bytes


def test_a_built_pool_is_taken_as_it_is(tiny_recipe: Recipes) -> None:
    recipe = tiny_recipe()
    built = open_pool(recipe)
    prompts = recipe.prompts.model_copy(update={"pool": [str(built.folder)]})
    assert count_prompts(recipe.model_copy(update={"prompts": prompts})).pool == count_prompts(recipe).pool


def test_checkpoints_and_pipeline_are_as_large_as_estimated(tiny_recipe: Recipes, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    estimated = {stage.name: stage.disk_bytes for stage in make_plan(recipe, 1, torch.float32).stages}
    distill(recipe, tmp_path / "run", lambda *_: None, lambda _: None)
    weights = [load_file(f) for f in (tmp_path / "run" / "checkpoints").rglob("*.safetensors")]
    tensors = [t for tensors in weights for name, t in tensors.items() if not name.endswith("/step")]
    assert sum(t.nbytes for t in tensors) == estimated["training"]
    unet, *copied = (tmp_path / "run" / "pipeline" / name for name in ("unet", "text_encoder", "vae"))
    student = load_file(unet / "diffusion_pytorch_model.safetensors").values()
    others = sum(f.stat().st_size for folder in copied for f in folder.glob("*.safetensors"))
    assert sum(t.nbytes for t in student) + others == estimated["pipeline"]


def test_cost_of_a_known_piece_of_code() -> None:
    weight = nn.Parameter(torch.empty(4, 5, device="meta"))
    inputs = torch.empty(3, 4, device="meta")

    def code() -> None:
        (inputs @ weight).sum().backward()

    cost = cost_of(code)
    assert cost.macs == 2 * 3 * 4 * 5  # forward, and the gradient of the weight
    assert cost.final_bytes == 4 * 4 * 5  # that gradient
    assert cost.peak_bytes >= cost.final_bytes + 4  # and the gradient of the sum


def test_counted_on_meta_is_what_is_alive_on_a_processor() -> None:
    def network(device: str) -> Callable[[], None]:
        with torch.device(device):
            layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 1))
            inputs = torch.zeros(2, 3, 16, 16)
        return lambda: layers(inputs).square().mean().backward()

    on_meta = cost_of(network("meta"))
    real = cost_of(network("cpu"))
    assert on_meta.macs == real.macs
    assert on_meta.peak_bytes == pytest.approx(real.peak_bytes, rel=0.05)
    assert on_meta.final_bytes == real.final_bytes


@pytest.fixture(scope="module")
def b_base() -> dict[str, Plan]:
    """BK-SDM-Base as it was published: 256 = 4 x 64, or 64 = 4 x 16, in fp16, gradient checkpointing, three losses."""
    changes = {"64": (256, 64), "16": (64, 16), "2": (8, 2)}
    return {
        name: make_plan(
            sd14(
                "b_base",
                loss__task=1.0,
                train__max_steps=50_000,
                train__global_batch_size=batch,
                train__micro_batch_size=micro,
                cache__batch_size=micro,
            ),
            1,
            torch.float16,
        )
        for name, (batch, micro) in changes.items()
    }


def test_macs_of_a_training_step(b_base: dict[str, Plan]) -> None:
    """Teacher once; student forward, again for checkpointing, and twice that backward."""
    teacher = unet_macs(SD14_UNET_CONFIG).total
    student = unet_macs(student_config("b-base", SD14_UNET_CONFIG)[0]).total
    plan = b_base["2"]
    assert plan.costs["teacher"].macs == plan.batch_sizes["teacher"] * teacher
    assert plan.costs["step"].macs == pytest.approx(2 * (teacher + 4 * student), rel=0.05)
    assert b_base["16"].costs["step"].macs == 8 * plan.costs["step"].macs
    without = make_plan(
        sd14("b_base", train__gradient_checkpointing=False, train__micro_batch_size=2), 1, torch.float16
    )
    assert without.costs["step"].macs == pytest.approx(2 * (teacher + 3 * student), rel=0.05)
    assert without.costs["step"].peak_bytes > 1.5 * plan.costs["step"].peak_bytes


def bk_sdm_hours(plan: Plan) -> float:
    """Theirs is our step, and the images and texts of each step encoded in fp16 as well."""
    samples = plan.recipe.train.max_steps * plan.recipe.train.global_batch_size
    macs = sum(plan.costs[name].macs / plan.batch_sizes[name] for name in ("step", "encode", "text")) * samples
    return 2 * macs / (GPUS["a100-80g"].half_tflops * 1e12 * TRAINING_EFFICIENCY) / 3600


def test_hours_of_bk_sdm(b_base: dict[str, Plan]) -> None:
    """300 hours are what the efficiency is calibrated on; 60 hours at a quarter of the batch are predicted as 75."""
    assert bk_sdm_hours(b_base["64"]) == pytest.approx(300, rel=0.02)
    assert bk_sdm_hours(b_base["16"]) == pytest.approx(60, rel=0.27)


def test_hours_of_30k_images(b_base: dict[str, Plan]) -> None:
    """BK-SDM-Small samples them in 25 steps, one at a time, in 10 hours on an RTX 3090: calibrated on it."""
    costs = b_base["64"].costs
    batch_sizes = b_base["64"].batch_sizes
    unet = unet_macs(student_config("b-small", SD14_UNET_CONFIG)[0]).total
    text = costs["text"].macs / batch_sizes["text"]
    macs = 2 * (25 * unet + text) + costs["decode"].macs / batch_sizes["decode"]
    hours = 30_000 * 2 * macs / (GPUS["rtx-3090"].half_tflops * 1e12 * SAMPLING_EFFICIENCY) / 3600
    assert hours == pytest.approx(10, rel=0.05)


def test_memory_of_bk_sdm(b_base: dict[str, Plan]) -> None:
    """Published: 53, 28 and 22 GB at 64, 16 and 2 samples at once. The allowance is calibrated on the first; the other
    two, and how memory grows with the batch, are predicted."""
    for micro, published in (("64", 53), ("16", 28), ("2", 22)):
        memory = memory_bytes(b_base[micro], on_gpu=True)
        encode = b_base[micro].costs["encode"].peak_bytes
        weights = sum(memory[name] for name in ("teacher", "student", "optimizer", "ema"))
        encoding = weights + memory["gradients"] + encode / 2  # theirs encodes images in fp16, in the step
        peak = GPU_ALLOWANCE * max(memory["training"], encoding) / 1e9
        assert peak == pytest.approx(published, rel=0.1), micro


def test_the_papers_batch_fits_the_papers_gpus() -> None:
    result = estimate(sd14("b_base"), "a100-40g", processes=4)
    assert not result["warnings"]
    assert result["memory"]["peak"] < 40e9


def test_the_warning_about_memory_names_what_to_change() -> None:
    recipe = sd14("c_base", train__micro_batch_size=64, train__gradient_checkpointing=False)
    (warning,) = estimate(recipe, "rtx-3090")["warnings"]
    assert warning.startswith("Does not fit in memory: ")
    assert "micro_batch_size below 64" in warning
    assert "gradient_checkpointing" in warning


def test_processes_share_cache_and_training_but_not_sampling(tiny_recipe: Recipes) -> None:
    recipe = tiny_recipe(evaluate={"every": 3})
    one, two = (estimate(recipe, "l4", processes=n)["stages"] for n in (1, 2))
    by_name = {a["stage"]: (a["seconds"], b["seconds"], a["macs"], b["macs"]) for a, b in zip(one, two, strict=True)}
    assert by_name["latent cache"][1] == pytest.approx(by_name["latent cache"][0] / 2)
    assert by_name["pictures"][0] == by_name["pictures"][1] > 0
    assert by_name["training"][2] == pytest.approx(by_name["training"][3])


@pytest.mark.parametrize(("cores", "processes", "seconds"), [(1, 1, 28.0), (1, 2, 36.0), (2, 2, 18.0), (8, 2, 18.0)])
def test_processes_on_one_processor_share_its_cores(
    cores: int, processes: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of 2 seconds are divided among them; each makes all four updates of 2 seconds."""
    monkeypatch.setattr(estimate_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    calls = {"step": 10.0, "update": 4.0}
    plan: Any = SimpleNamespace(
        calls=lambda _stage: calls, num_processes=processes, costs={"step": SimpleNamespace(macs=1)}
    )
    stage = Stage("training", "", calls, 0)
    durations_of_a_call = durations.Durations({"step": 2.0, "update": 2.0}, [])
    slowdown = estimate_module._slowdown(processes)
    assert estimate_module._stage_costs(plan, stage, durations_of_a_call, slowdown)["seconds"] == seconds


def test_scored_images_are_counted(tiny_recipe: Recipes) -> None:
    plain = tiny_recipe(evaluate={"every": 2})
    scored = plain.model_copy(update={"evaluate": plain.evaluate.model_copy(update={"score": "judge", "count": 8})})
    stages = [make_plan(recipe, 1, torch.float32).stages for recipe in (plain, scored)]
    before, after = (next(s for s in of if s.name == "pictures").samples for of in stages)
    assert after["decode"] - before["decode"] == 3 * 8  # three evaluations in six steps
    assert after["student"] - before["student"] == 3 * 8 * 2 * 2  # two steps of guidance's two branches


def test_networks_too_large_to_time_follow_the_gemm_rate(tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "gemm_rate", lambda **_: 1e9)
    result = estimate(tiny_recipe(), measure=False)
    for stage in result["stages"]:
        assert stage["seconds"] == pytest.approx(stage["macs"] / (1e9 * durations.CPU_EFFICIENCY))
    assert result["total"]["macs"] == sum(s["macs"] for s in result["stages"]) > 0


def test_measured_seconds_are_calls_times_a_call(tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are built and run; only the clock is replaced."""
    called: list[str] = []

    def clock(units: dict[str, Any], device: torch.device, seconds: float) -> dict[str, float]:
        for name, unit in units.items():
            unit.run()
            called.append(name)
        return dict.fromkeys(units, 2.0)

    monkeypatch.setattr(durations, "time_units", clock)
    recipe = tiny_recipe(train={"micro_batch_size": 2}, evaluate={"every": 2})
    seconds = {s["stage"]: s["seconds"] for s in estimate(recipe, measure=True)["stages"]}
    texts = 12 + unpaired_share(recipe, 1000) * 6 * 4
    assert seconds["training"] == pytest.approx(2.0 * (6 * 4 / 2 + 6 + texts / 32))  # steps, updates, texts
    assert set(called) == {"teacher", "step", "update", "text", "student", "decode"}  # no real images are encoded


def test_real_images_are_encoded_and_not_sampled(tiny_recipe: Recipes, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    plan = make_plan(tiny_recipe(cache={"source": "real", "images": str(tmp_path / "images")}), 1, torch.float32)
    assert plan.stages[0].samples == {"encode": 12}
    assert plan.costs["encode"].macs > 0


def test_bad_input_is_refused(recipe_file: Callable[..., Path]) -> None:
    file = str(recipe_file())
    with pytest.raises(RcdeployError, match="a100-80") as error:
        find_gpu("a100-80")
    assert "a100-80g" in str(error.value.fix)
    missing = recipe_file(name="missing", prompts={"paired": ["nowhere.txt"], "paired_count": None})
    with pytest.raises(RcdeployError, match=r"nowhere.txt"):
        count_prompts(load_recipe(missing, check_files=False))
    unknown = recipe_file(name="unknown", teacher={"path": "somebody/some-model"})
    with pytest.raises(RcdeployError, match="not on this machine"):
        make_plan(load_recipe(unknown, check_files=False), 1, torch.float32)
    with pytest.raises(RcdeployError, match="not a multiple"):
        estimate(load_recipe(Path(file)), "l4", processes=3)
    assert run(app, ["estimate", file, "--set", "train.max_stepz=3"]).exception is not None


def test_the_command(recipe_file: Callable[..., Path]) -> None:
    file = str(recipe_file(evaluate={"every": 3}))
    page = run(app, ["estimate", file, "--device", "l4", "--set", "train.max_steps=9"], env={"COLUMNS": "120"})
    assert page.exit_code == 0, page.output
    for text in ("NVIDIA L4", "9 steps of 4", "samples through the teacher", "Calibrated", "L4 datasheet"):
        assert text in page.output
    quiet = run(app, ["estimate", file, "--no-measure", "--json"])
    result = json.loads(quiet.output)
    assert result["device"]["name"] == "this machine"
    assert {s["stage"] for s in result["stages"]} == {"latent cache", "prompt pool", "training", "pictures", "pipeline"}
    assert not (Path(file).parent / "cache").exists()


def test_this_machine() -> None:
    facts = describe()
    assert facts["cores"] >= 1
    assert facts["memory_gb"] > 0
    assert facts["versions"]["torch"] == torch.__version__
    json.dumps(facts)
    before = torch.get_num_threads()
    assert gemm_rate(threads=2, seconds=0.01, size=64) > 0
    assert torch.get_num_threads() == before
    assert all(dataclasses.astuple(gpu)[-1] for gpu in GPUS.values())


def test_stages_beyond_distillation_are_counted(tiny_recipe: Recipes) -> None:
    """Guidance in the teacher's outputs is a second call of it; a student that has learnt it needs none."""
    folded = {"distill": {"guidance_scale": 3.0}}
    scored = {"evaluate": {"every": 3, "num_inference_steps": 2}}
    plain, guided = (make_plan(tiny_recipe(**scored, **keys), 1, torch.float32) for keys in ({}, folded))
    shapes = plain.shapes.configs["unet"]
    assert shapes == guided.shapes.configs["unet"]
    teacher_rows = plain.costs["teacher"].macs / plain.batch_sizes["teacher"]
    more = guided.costs["step"].macs / guided.batch_sizes["step"] - plain.costs["step"].macs / plain.batch_sizes["step"]
    assert more == pytest.approx(teacher_rows, rel=0.02)
    grids = [next(s for s in plan.stages if s.name == "pictures").samples["student"] for plan in (plain, guided)]
    assert grids == [2 * (8 * 2 * 2) + 2 * 4, 2 * (8 * 2) + 2 * 4]  # evaluations, images, steps, branches; validated
    few = {"max_steps": 5, "num_inference_steps": 4, "solver_steps": 3, "own_states": 0.5}
    recipe = tiny_recipe(**folded, few_steps=few, decoder={"max_steps": 7, "batch_size": 2})
    result = estimate(recipe, "a100-40g")
    stages = {stage["stage"]: stage for stage in result["stages"]}
    plan = make_plan(recipe, 1, torch.float32)
    samples = next(stage for stage in plan.stages if stage.name == "few steps").samples
    assert samples["teacher"] == 5 * 4 * 3 * 2 and samples["leap"] == 5 * 4
    assert samples["student"] == 5 * 4 * 0.5 * 1.5
    assert stages["decoder"]["amount"] == "7 steps of 2" and stages["decoder"]["macs"] > 0
    consistency = tiny_recipe(**folded, few_steps={"max_steps": 5, "method": "consistency", "solver_steps": 4})
    plan_of_consistency = make_plan(consistency, 1, torch.float32)
    samples = next(stage for stage in plan_of_consistency.stages if stage.name == "few steps").samples
    assert samples["teacher"] == 5 * 4 * 2 and samples["student"] == 5 * 4 * 3 / 4
    assert result["total"]["seconds"] == pytest.approx(sum(s["seconds"] for s in stages.values()))
    assert stages["few steps"]["seconds"] > 0 and {"leap", "decoder"} <= set(plan.needed_units)
