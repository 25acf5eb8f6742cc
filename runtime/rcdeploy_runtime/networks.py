"""A package's networks, as functions of numpy arrays: prompts, latents and images."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image

from .compiled_networks import CompiledNetworks
from .errors import RcdeployError
from .guidance import TIMESTEP_COND, guidance_embedding
from .images import to_image, to_network
from .noise import Noise
from .noise_schedule import Array
from .package import NETWORK_FILES, Package
from .session_options import SessionOptions
from .sessions import Batched, open_session
from .text_encoding import Condition, TextEncoding, check_output
from .tiles import decode_in_tiles

BATCHED_INPUTS = {
    "text_encoder": ("input_ids",),
    "text_encoder_2": ("input_ids",),
    "unet": ("sample", "encoder_hidden_states", "text_embeds", "time_ids", TIMESTEP_COND),
    "vae_decoder": ("latent_sample",),
    "vae_encoder": ("sample",),
}

LOG_VARIANCES = (-30.0, 20.0)
"""bounds of a posterior's, as in diffusers; the encoder of an AutoencoderTiny, which has none, gives the lower one"""


class Networks:
    """Text encoder, UNet and VAE. May be used from several threads.

    Attributes:
        text: prompts to conditions.
        unet, vae_decoder: call them with named arrays.
        device: where they run.
        options: how they are executed.
        guidance_width: of the embedding of the guidance scale that the UNet takes; None where it takes none.
    """

    def __init__(self, package: Package, options: SessionOptions, compiled: Path | None = None) -> None:
        """compiled: a folder of what OpenVINO has compiled of this package, which is read and filled.

        Raises RcdeployError for options that this package's format does not know.
        """
        self.options = options.checked(package.format)
        self.package = package
        self._compiled = compiled
        self.guidance_width = package.facts.guidance_embedding
        self.text = TextEncoding(package, self._open)
        self.unet = self._open("unet")
        self.vae_decoder = self._open("vae_decoder")
        self.device = self.unet.session.device
        self._vae_encoder: Batched | None = None  # opened by the first img2img
        self._lock = threading.Lock()

    def _open(self, component: str) -> Batched:
        package = self.package
        for name in NETWORK_FILES[package.format]:
            package.file(f"{component}/{name}")
        precision = package.facts.precision_of(component)
        builder = package.facts.engines.get("builder")
        kept = CompiledNetworks(self._compiled / component) if self._compiled else None
        session = open_session(package.folder / component, package.format, self.options, precision, builder, kept)
        return Batched(session, BATCHED_INPUTS[component])

    def encode_image(self, image: Image.Image, height: int, width: int, noise: Noise | None = None) -> Array:
        """An image -> latents [1, c, h, w], scaled: the mean of the VAE's posterior, nothing random.

        noise: samples the posterior with it, [n, c, h, w]. Nothing is drawn where the VAE has no posterior.
        """
        if not self.package.has_encoder:
            raise RcdeployError(
                f"{self.package.path} was packed without the VAE's encoder, which img2img needs",
                fix="Export it anew without --no-encoder ([export] encoder = true).",
            )
        with self._lock:
            if self._vae_encoder is None:
                self._vae_encoder = self._open("vae_encoder")
        moments = self._vae_encoder(sample=to_network(image, height, width))
        latents = self.package.latents
        pixels = self.package.facts.pixels_per_latent
        check_output(moments, "vae_encoder", (1, 2 * latents.shape[0], height // pixels, width // pixels))
        mean, log_variance = np.split(moments, 2, axis=1)
        if noise is not None and (log_variance > LOG_VARIANCES[0]).any():
            mean = mean + np.exp(log_variance.clip(*LOG_VARIANCES) / 2) * noise()
        return mean * np.float32(latents.scaling_factor)

    def predict(self, model_input: Array, t: float, condition: Condition, guidance_scale: float | None) -> Array:
        """The UNet's output [n, c, h, w].

        guidance_scale: None or at most 1 for none. With one the condition's 2n rows begin with the null one's, but of a
        UNet that takes the scale, whose condition has n rows as always.
        """
        timestep = np.asarray(round(float(t)), np.int64)  # the graph takes whole ones; linspace alone makes others
        guided = guidance_scale is not None and not self.guidance_width
        sample = np.concatenate([model_input, model_input]) if guided else model_input
        height, width = (n * self.package.facts.pixels_per_latent for n in sample.shape[2:])
        added = condition.added_inputs(height, width)
        if self.guidance_width:
            added[TIMESTEP_COND] = guidance_embedding([guidance_scale or 1.0] * len(sample), self.guidance_width)
        output = self.unet(sample=sample, timestep=timestep, encoder_hidden_states=condition.embeds, **added)
        check_output(output, "unet", sample.shape)
        if guidance_scale is None or not guided:
            return output
        null, conditional = np.split(output, 2)
        result: Array = null + np.float32(guidance_scale) * (conditional - null)
        return result

    def decode(self, latents: Array, tile: int | None = None) -> list[Image.Image]:
        """One at a time: a decoder needs more memory than all the rest. tile: in tiles of so many latent pixels."""
        check_output(latents, "unet", latents.shape)
        scale = self.package.facts.pixels_per_latent
        images = []
        for x_0 in latents / np.float32(self.package.latents.scaling_factor):
            pixels = self._decode(x_0[None])[0] if tile is None else decode_in_tiles(self._decode, x_0, tile, scale)
            images.append(to_image(pixels.transpose(1, 2, 0) / 2 + 0.5))
        return images

    def _decode(self, latents: Array) -> Array:
        scale = self.package.facts.pixels_per_latent
        pixels = self.vae_decoder(latent_sample=latents)
        check_output(pixels, "vae_decoder", (1, 3, latents.shape[2] * scale, latents.shape[3] * scale))
        return pixels
