"""Every sampler of the runtime against diffusers' class of the same name, over whole schedules."""

from __future__ import annotations

import re

import diffusers
import numpy as np
import pytest
import torch

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.noise_schedule import NoiseSchedule
from rcdeploy_runtime.samplers import SAMPLERS, make_sampler
from rcdeploy_runtime.sampling_defaults import FEW_STEP_SAMPLERS, SamplingDefaults

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PEERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "dpm++_sde": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}
OPTIONS = {"pndm": {"skip_prk_steps": True}, "dpm++_sde": {"algorithm_type": "sde-dpmsolver++"}}
"""of diffusers' class, where its default is another sampler"""
WITHOUT_ZERO_SNR = ("pndm", "heun")
"""classes of diffusers that do not rescale"""
SCHEDULES = (
    [
        {**SD, "timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
        for spacing in ("leading", "trailing", "linspace")
    ]
    + [
        {**SD, "timestep_spacing": spacing, "clip_sample": False, "steps_offset": 1, "rescale_betas_zero_snr": True}
        for spacing in ("leading", "trailing", "linspace")
    ]
    + [
        {**SD, "clip_sample": False},  # each class's own defaults
        {**SD, "timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True, "clip_sample_range": 1.5},
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False},
        {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "leading"},
        {**SD, "clip_sample": False, "original_inference_steps": 10, "timestep_scaling": 5.0},
    ]
)


def model(x: np.ndarray, t: float) -> np.ndarray:
    """Any smooth function of x and t will do for a UNet."""
    return np.tanh(0.7 * x + 0.3 * np.sin(t / 100)).astype(np.float32) + 0.2 * np.roll(x, 1, -1)


def peer_of(name, config):
    return PEERS[name].from_config(OPTIONS.get(name, {}) | config)


def compare(name, config, steps, monkeypatch, eta=0.0):
    """Walk the whole schedule beside diffusers' class, on the same noise."""
    peer = peer_of(name, config)
    peer.set_timesteps(steps)
    arguments = {"eta": eta} if name in ("ddim", "tcd") else {}

    fresh = np.random.default_rng(1)
    noises = [fresh.standard_normal((2, 4, 8, 8), np.float32) for _ in range(60)]
    peer_noise, our_noise = iter(noises), iter(noises)
    module = __import__(PEERS[name].__module__, fromlist=["x"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(next(peer_noise)))
    ours = make_sampler(name, NoiseSchedule.from_config(config), steps, lambda: next(our_noise), eta=eta)
    assert np.allclose(ours.timesteps, peer.timesteps.numpy(), rtol=1e-4, atol=1e-3)  # Karras: fractions
    # one step of linspace spacing begins at t = 0, where a float32 has four digits of sigma^2 = (1 - a) / a
    from_zero = config.get("rescale_betas_zero_snr") and ours.timesteps[0] == 0
    assert ours.init_noise_sigma == pytest.approx(float(peer.init_noise_sigma), rel=1e-4 if from_zero else 1e-6)

    # where sigma begins at 4096, a float32 of x has steps of 0.0005 to 0.001
    tolerance = 2e-4 if config.get("rescale_betas_zero_snr") and "euler" in name else 3e-5 if name == "heun" else 1e-5

    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32) * np.float32(ours.init_noise_sigma)
    theirs = torch.from_numpy(x.copy())
    for i, t in enumerate(peer.timesteps):
        model_input = peer.scale_model_input(theirs, t).numpy()
        theirs = peer.step(torch.from_numpy(model(model_input, float(t))), t, theirs, **arguments).prev_sample
        x = ours.step(model(ours.scale_model_input(x, i), float(t)), i, x).astype(np.float32)
        assert np.abs(x - theirs.numpy()).max() <= tolerance * max(1.0, np.abs(x).max()), f"visit {i}"
    assert next(our_noise, None) is next(peer_noise, None)  # as many draws: a seed's image depends on it


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", range(len(SCHEDULES)))
@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in SAMPLERS for steps in ((1, 2, 4, 8) if name in FEW_STEP_SAMPLERS else (1, 4, 25))],
)
def test_trajectory_is_diffusers(name, schedule, prediction, steps, monkeypatch):
    config = {**SCHEDULES[schedule], "prediction_type": prediction}
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon" and name not in WITHOUT_ZERO_SNR:
        pytest.skip("at zero SNR only v has an x_0; diffusers' PNDM and Heun do not rescale")
    compare(name, config, steps, monkeypatch)


@pytest.mark.parametrize(("schedule", "prediction"), [(0, "epsilon"), (2, "v_prediction"), (8, "epsilon")])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("euler heun dpm++ dpm++_sde unipc", {"use_karras_sigmas": True}),
        ("euler dpm++ dpm++_sde unipc", {"final_sigmas_type": "sigma_min"}),
        ("euler dpm++ unipc", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
        ("dpm++ dpm++_sde", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
        ("pndm", {"skip_prk_steps": False}),
        ("ddim tcd", {"eta": 0.3}),
        ("ddim tcd", {"eta": 1.0}),
    ],
    ids=str,
)
def test_options_are_diffusers(names, options, schedule, prediction, monkeypatch):
    config = {**SCHEDULES[schedule], "prediction_type": prediction, **options}
    eta = config.pop("eta", 0.0)
    for name in names.split():
        for steps in (4, 8) if name in FEW_STEP_SAMPLERS else (4, 5, 20):
            compare(name, config, steps, monkeypatch, eta)


@pytest.mark.parametrize("changes", [{}, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_img2img_begins_where_diffusers_does(name, changes):
    config = {**SCHEDULES[0], "prediction_type": "v_prediction" if changes else "epsilon", **changes}
    peer = peer_of(name, config)
    peer.set_timesteps(10)
    x_0, noise = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), np.float32)
    for i in (0, 4, 8):
        ours = make_sampler(name, NoiseSchedule.from_config(config), 10, lambda: np.zeros(1), skip=i)
        at = 2 * i if name == "heun" else i + (name == "pndm" and i > 0)  # pndm's second timestep stands there twice
        theirs = peer.add_noise(torch.from_numpy(x_0), torch.from_numpy(noise), peer.timesteps[at : at + 1])
        assert np.abs(ours.add_noise(x_0, noise, 0) - theirs.numpy()).max() <= 1e-5 * np.abs(theirs.numpy()).max()


def test_an_unknown_schedule_is_refused():
    for config, word in (
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"timestep_spacing": "karras"}, "timestep_spacing"),
        ({"thresholding": True}, "thresholding"),
    ):
        with pytest.raises(RcdeployError, match=word):
            NoiseSchedule.from_config({**SD, **config})
    schedule = NoiseSchedule.from_config(SD)
    with pytest.raises(RcdeployError, match="euler_ancestral"):
        make_sampler("kdpm2", schedule, 10, lambda: np.zeros(1))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_number_of_steps_is_drawn_or_refused(name, spacing, offset):
    """Never a traceback: the message names the most steps, which then are taken."""
    schedule = NoiseSchedule.from_config({**SD, "timestep_spacing": spacing, "steps_offset": offset})
    x = np.ones((1, 4, 2, 2), np.float32)
    for steps in (-1, 0, 1, 2, 3, 61, 1000, 10**9):
        try:
            sampler = make_sampler(name, schedule, steps, lambda: x)
        except RcdeployError as error:
            assert steps < 1 or steps > 50, error
            most = int(re.search(r"takes 1 to (\d+) steps", error.message)[1])
            assert most < steps or steps < 1
            sampler = make_sampler(name, schedule, most, lambda: x)
        latents = x
        for i in range(len(sampler.timesteps)):
            latents = sampler.step(0.01 * x, i, latents).astype(np.float32)
        assert np.isfinite(latents).all()


def test_a_step_without_signal_is_refused_where_it_cannot_be_computed():
    schedule = NoiseSchedule.from_config({**SD, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True})
    for name in ("ddim", "lcm", "tcd"):
        with pytest.raises(RcdeployError, match="zero SNR"):
            make_sampler(name, schedule, 10, lambda: np.zeros(1))
    for name in ("euler", "euler_ancestral", "heun", "dpm++", "dpm++_sde", "unipc", "pndm"):
        make_sampler(name, schedule, 10, lambda: np.zeros(1))


@pytest.mark.parametrize(
    ("name", "options", "eta", "word"),
    [
        ("euler", {"use_beta_sigmas": True}, 0, "use_beta_sigmas = True"),
        ("euler", {"sigma_max": 80.0}, 0, "sigma_max = 80.0"),
        ("heun", {"use_exponential_sigmas": True}, 0, "use_exponential_sigmas"),
        ("dpm++", {"solver_order": 3}, 0, "solver_order = 3"),
        ("dpm++_sde", {"algorithm_type": "sde-dpmsolver"}, 0, "algorithm_type"),
        ("unipc", {"disable_corrector": [0]}, 0, "disable_corrector"),
        ("pndm", {"skip_prk_steps": False}, 0, "4 steps or more"),
        ("euler", {}, 0.5, "eta is 0.5, and the sampler euler has none"),
    ],
)
def test_an_option_that_is_not_followed_is_refused(name, options, eta, word):
    schedule = NoiseSchedule.from_config({**SD, **options})
    with pytest.raises(RcdeployError, match=word) as caught:
        make_sampler(name, schedule, 3, lambda: np.zeros(1), eta=eta)
    assert "ddim" in caught.value.fix
    make_sampler("ddim", schedule, 3, lambda: np.zeros(1))  # whose class has no such option


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flat_schedule_is_drawn_from_or_refused(name, options):
    """Noise that does not change between timesteps; nobody trains so, but a stranger's package may say so."""
    x = np.ones((1, 4, 2, 2), np.float32)
    for betas in ([0.5] + [0.0] * 99, [1e-7] * 100):
        schedule = NoiseSchedule.from_config({"trained_betas": betas, "num_train_timesteps": 100, **options})
        try:
            sampler = make_sampler(name, schedule, 4, lambda: x)
        except RcdeployError as error:
            assert "same noise" in error.message and "ddim" in error.fix
            continue
        latents = x
        for i in range(len(sampler.timesteps)):
            latents = sampler.step(0.01 * x, i, latents).astype(np.float32)
        assert np.isfinite(latents).all()


def test_options_with_the_values_that_are_followed_are_taken():
    """A configuration as diffusers writes it, every key spelt out."""
    for name in PEERS:
        config = {key: value for key, value in peer_of(name, SD).config.items() if not key.startswith("_")}
        make_sampler(name, NoiseSchedule.from_config(config | {"thresholding": False}), 10, lambda: np.zeros(1))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_unet_calls_are_the_timesteps_that_are_visited(name: str, steps: int) -> None:
    made = make_sampler(
        name, NoiseSchedule.from_config(SCHEDULES[0]), steps, lambda: np.zeros((1, 4, 8, 8), np.float32)
    )
    assert SamplingDefaults(name, steps).unet_calls == len(made.timesteps)
