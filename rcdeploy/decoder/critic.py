"""A patch critic, the adversary of the tiny decoder: pixels and features alone leave its images too smooth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 24


class PatchCritic(nn.Module):
    """Images [n, 3, H, W] -> how much each patch looks like the VAE's [n, 1, H/4, W/4] (PatchGAN, arXiv 1611.07004).

    A patch is 18 pixels wide. Without normalisation, so that a sample's verdict does not depend on its batch.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        verdicts: Tensor = self.layers(images)
        return verdicts


class NetworkAndCritic(nn.Module):
    """What is trained and saved in checkpoints where there is a critic; the EMA and the result leave the critic out."""

    def __init__(self, network: nn.Module, critic: PatchCritic) -> None:
        super().__init__()
        self.network = network
        self.critic = critic


def build_critic(channels: int, seed: int) -> PatchCritic:
    """A critic with random first weights, which are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchCritic(channels)


def adversarial_loss(critic: PatchCritic, decoded: Tensor) -> Tensor:
    """The decoder's: minus the mean verdict on what it decoded. Its gradient is not the critic's."""
    with _frozen(critic):
        return -critic(decoded).mean()


def critic_loss(critic: PatchCritic, decoded: Tensor, images: Tensor) -> Tensor:
    """The critic's: hinge losses of verdicts that should be above 1 for the VAE's images, below -1 for decoded ones."""
    return F.relu(1 - critic(images)).mean() + F.relu(1 + critic(decoded.detach())).mean()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
