"""Few steps: leaps are DDIM's; the stage starts from a distilled student, resumes to the bit, names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from training_runs import Killed, at_step, fail, same_bytes

from rcdeploy import checkpoint
from rcdeploy.condition import Condition
from rcdeploy.few_steps import objective as few_steps_objective
from rcdeploy.few_steps.leaps import Leaps
from rcdeploy.few_steps.objective import ConsistencyObjective
from rcdeploy.few_steps.train import train_few_steps
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_stages import FewSteps
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def schedule(**settings: object) -> DDIMScheduler:
    defaults = {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": False}
    return DDIMScheduler(**{**SCHEDULE, **defaults, **settings})


def with_few_steps(recipe: Recipe, **settings: object) -> Recipe:
    section = FewSteps(**{"num_inference_steps": 2, "solver_steps": 2, "max_steps": 4, **settings})  # type: ignore[arg-type]
    return recipe.model_copy(update={"few_steps": section})


def trained(recipe: Recipe, folder: str = "one/few_steps", progress: Any = lambda *_: None) -> None:
    train_few_steps(recipe, Path(folder), progress, lambda _text: None)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_leaps_are_the_steps_of_ddim_with_trailing_spacing(steps: int, prediction_type: str, zero_snr: bool) -> None:
    ddim = schedule(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    ddim.set_timesteps(steps)
    leaps = Leaps.of(ddim, steps)
    assert ddim.timesteps.tolist() == list(leaps.starts)
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(ddim.timesteps):
        output = torch.randn(x.shape, generator=torch.Generator().manual_seed(i + 1))
        expected = ddim.step(output, t, x).prev_sample
        starts = torch.full((3,), int(t))
        x = leaps.move(output, x, starts, leaps.ends(starts))
        assert torch.allclose(x, expected, atol=1e-4, rtol=1e-4)


def test_a_solver_makes_the_small_steps_of_the_finer_trajectory() -> None:
    fine = schedule()
    fine.set_timesteps(8)
    leaps = Leaps.of(fine, 2)
    visited: list[int] = []

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        visited.append(int(timesteps[0]))
        return 0.3 * x + timesteps.view(-1, 1, 1, 1) / 1000

    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    x = noise
    for start in leaps.starts:
        x = leaps.solve(predict, x, torch.full((2,), start), 4)
    assert visited == fine.timesteps.tolist()
    expected = noise
    for t in fine.timesteps:
        expected = fine.step(0.3 * expected + t / 1000, t, expected).prev_sample
    assert torch.allclose(x, expected, atol=1e-4, rtol=1e-4)


def test_steps_that_do_not_divide_the_schedule_are_refused() -> None:
    with pytest.raises(RcdeployError, match="3 does not divide the teacher's 1,000") as error:
        Leaps.of(schedule(), 3)
    assert "1, 2, 4, 5, 8 or 10" in str(error.value)


def test_a_timestep_belongs_to_the_leap_that_crosses_it() -> None:
    leaps = Leaps.of(schedule(), 2)
    assert leaps.grid(5) == (999, 899, 799, 699, 599, 499, 399, 299, 199, 99)
    assert leaps.ends(torch.tensor([999, 899, 500, 499, 99, 0])).tolist() == [499, 499, 499, -1, -1, -1]
    x = torch.randn(2, 4, 2, 2)
    timesteps = torch.tensor([999, 99])
    torch.testing.assert_close(leaps.move(0.3 * x, x, timesteps, timesteps), x)  # the boundary condition
    with pytest.raises(RcdeployError, match="501 steps do not fit into a leap over 500 timesteps"):
        leaps.grid(501)


def test_consistency_ends_where_the_student_arrives_from_one_solver_step_further_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = FewSteps(method="consistency", num_inference_steps=2, solver_steps=5)
    objective = ConsistencyObjective.__new__(ConsistencyObjective)
    objective.leaps, objective.section = Leaps.of(schedule(), 2), section
    unet = SimpleNamespace(config={})
    objective.run = SimpleNamespace(model=SimpleNamespace(unet=unet), teacher=SimpleNamespace(device="cpu"))  # type: ignore[assignment]
    monkeypatch.setattr(objective, "_solver_output", lambda *_: lambda x, _timesteps: 0.3 * x)
    monkeypatch.setattr(few_steps_objective, "predict", lambda _unet, x, _timesteps, _condition: 0.1 * x)
    starts = torch.tensor([999, 599, 99, 199])
    x = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    target = objective._target(x, starts, Condition(torch.zeros(4, 1, 1)), None)

    def moved(output: float, latents: torch.Tensor, t: int, end: int) -> torch.Tensor:
        return objective.leaps.move(output * latents, latents, torch.tensor([t]), torch.tensor([end]))

    for k, (t, nearer, end) in enumerate([(999, 899, 499), (599, 499, 499), (99, -1, -1), (199, 99, -1)]):
        expected = moved(0.3, x[k : k + 1], t, nearer)
        if nearer != end:
            expected = moved(0.1, expected, nearer, end)
        torch.testing.assert_close(target[k : k + 1], expected)


def test_defaults_of_consistency() -> None:
    assert (FewSteps().solver_steps, FewSteps().own_states) == (4, 0.5)
    section = FewSteps(method="consistency", num_inference_steps=4)
    assert (section.solver_steps, section.own_states) == (12, 0)
    with pytest.raises(ValueError, match="own_states belongs to"):
        FewSteps(method="consistency", own_states=0.5)


@pytest.mark.parametrize(
    "settings", [{}, {"solver": "student", "huber_c": 0.01}, {"own_states": 0.0}, {"method": "consistency"}]
)
def test_the_stage_begins_with_the_distilled_student_and_moves_its_weights(
    settings: dict[str, object], one: Recipe
) -> None:
    trained(with_few_steps(one, **settings))
    manifest = Manifest.read(Path("one/few_steps"), "run")
    assert manifest.facts["sampling"] == {"sampler": "ddim", "num_inference_steps": 2, "guidance_scale": 1.0}
    assert {"distilled_student", "latent_cache", "prompt_pool"} == {made["kind"] for made in manifest.made_from}
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(Path(folder) / weights) for folder in ("one", "one/few_steps"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all((before[name].float() - after[name].float()).abs().max() < 0.1 for name in before)
    pipeline = StableDiffusionPipeline.from_pretrained("one/few_steps/pipeline", safety_checker=None)
    assert pipeline.scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("method", ["leaps", "consistency"])
def test_a_stage_that_was_killed_goes_on_to_the_bit(method: str, one: Recipe) -> None:
    recipe = with_few_steps(one, method=method)
    trained(recipe)
    Path("one/few_steps").rename("whole")
    with pytest.raises(Killed):
        trained(recipe, progress=at_step(3, fail, "few steps"))
    assert checkpoint.steps_of(Path("one/few_steps")) == [2]
    trained(recipe)
    same_bytes("whole", "one/few_steps", 4)


def test_without_a_distilled_student_the_stage_says_what_to_run(one: Recipe) -> None:
    with pytest.raises(RcdeployError, match="no distilled student") as error:
        trained(with_few_steps(one), "other/few_steps")
    assert "rcdeploy distill" in str(error.value)


def test_a_student_of_another_teacher_is_refused(one: Recipe) -> None:
    manifest = json.loads(Path("one/manifest.json").read_text())
    manifest["teacher"]["revision"] = "0" * 16
    Path("one/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RcdeployError, match="of another teacher"):
        trained(with_few_steps(one))


def test_another_few_steps_recipe_is_refused_in_the_same_folder(one: Recipe) -> None:
    trained(with_few_steps(one))
    with pytest.raises(RcdeployError, match="another recipe") as error:
        trained(with_few_steps(one, solver_steps=3))
    assert "few_steps.solver_steps: 2 -> 3" in str(error.value)
