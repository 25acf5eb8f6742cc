"""Inception-v3 of the FID: the graph of December 2015, with its differences from every later Inception.

1,008 logits; average pools that leave padding out of the mean; a maximum in the last block's pool; and images resized
to 299 x 299 as TensorFlow 1 did, from the upper left corner and without smoothing. Published FIDs are of this network
(Heusel et al. 2017); another one's features are not comparable with them. The graph is read as torch-fidelity reads it;
pytorch-fid, which BK-SDM's scripts call, has the same weights but resizes as PyTorch does, half a pixel apart: its
numbers, and statistics that it wrote, are close to these and not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdeploy_runtime.errors import RcdeployError

from ..recipe_checks import INCEPTION_FEATURES
from ..storage.tensors import load_tensors
from .spec import HOW_TO_GET_INCEPTION

RESOLUTION = 299
FEATURES = INCEPTION_FEATURES
CLASSES = 1008
Step = tuple[str, int, str]
"""name, channels, kernel: "3" is 3 x 3, "1x7" is 1 high and 7 wide, "3/2" has stride 2 and no padding"""
Branch = Sequence[Step | tuple[Step, Step]]
"""steps one after another; a pair of steps stands side by side at the end"""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: str, padded: bool = True) -> None:
        super().__init__()
        size, _, stride = kernel.partition("/")
        high, _, wide = size.partition("x")
        kernel_size = int(high), int(wide or high)
        padding = (kernel_size[0] // 2, kernel_size[1] // 2) if padded and not stride else (0, 0)
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, int(stride or 1), padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, their channels one after another, the pool's last.

    pool: "average" or "max" at stride 1, before a convolution to `pool_channels`; "down": maximum at stride 2, alone.
    """

    def __init__(self, c_in: int, branches: Sequence[Branch], pool: str, pool_channels: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            channels = c_in
            for step in branch:
                # a pair has the same channels on both sides
                for name, c_out, kernel in [step] if isinstance(step[0], str) else step:
                    self.add_module(f"branch{name}", Convolution(channels, int(c_out), str(kernel)))
                    after = int(c_out)
                channels = after
        if pool_channels:
            self.branch_pool = Convolution(c_in, pool_channels, "1")

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for branch in self.branches:
            y = x
            for step in branch:
                names = [step[0]] if isinstance(step[0], str) else [s[0] for s in step]
                y = torch.cat([getattr(self, f"branch{name}")(y) for name in names], 1)
            parts.append(y)
        if self.pool == "down":
            return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        average = self.pool == "average"
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if average else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*parts, self.branch_pool(pooled)], 1)


def _block_a(c_in: int, pool_channels: int) -> Block:
    fives: Branch = [("5x5_1", 48, "1"), ("5x5_2", 64, "5")]
    threes: Branch = [("3x3dbl_1", 64, "1"), ("3x3dbl_2", 96, "3"), ("3x3dbl_3", 96, "3")]
    return Block(c_in, [[("1x1", 64, "1")], fives, threes], "average", pool_channels)


def _block_b(c_in: int) -> Block:
    threes: Branch = [("3x3dbl_1", 64, "1"), ("3x3dbl_2", 96, "3"), ("3x3dbl_3", 96, "3/2")]
    return Block(c_in, [[("3x3", 384, "3/2")], threes], "down")


def _block_c(c: int) -> Block:
    once: Branch = [("7x7_1", c, "1"), ("7x7_2", c, "1x7"), ("7x7_3", 192, "7x1")]
    names, kernels = [f"7x7dbl_{i}" for i in range(1, 6)], ("1", "7x1", "1x7", "7x1", "1x7")
    twice: Branch = list(zip(names, (c, c, c, c, 192), kernels, strict=True))
    return Block(768, [[("1x1", 192, "1")], once, twice], "average", 192)


def _block_d() -> Block:
    threes: Branch = [("3x3_1", 192, "1"), ("3x3_2", 320, "3/2")]
    sevens: Branch = [("7x7x3_1", 192, "1"), ("7x7x3_2", 192, "1x7"), ("7x7x3_3", 192, "7x1"), ("7x7x3_4", 192, "3/2")]
    return Block(768, [threes, sevens], "down")


def _block_e(c_in: int, pool: str) -> Block:
    threes: Branch = [("3x3_1", 384, "1"), (("3x3_2a", 384, "1x3"), ("3x3_2b", 384, "3x1"))]
    twice: Branch = [
        ("3x3dbl_1", 448, "1"),
        ("3x3dbl_2", 384, "3"),
        (("3x3dbl_3a", 384, "1x3"), ("3x3dbl_3b", 384, "3x1")),
    ]
    return Block(c_in, [[("1x1", 320, "1")], threes, twice], pool, 192)


class Inception(nn.Module):
    """Its parameters have the names of the widely used PyTorch conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, "3/2")
        self.Conv2d_2a_3x3 = Convolution(32, 32, "3", padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, "3")
        self.Conv2d_3b_1x1 = Convolution(64, 80, "1")
        self.Conv2d_4a_3x3 = Convolution(80, 192, "3", padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_c(c) for c in (128, 160, 160, 192))
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [n, 3, h, w] -> features [n, 2048], logits [n, 1008] without bias (of which the IS is taken)."""
        x = resized_as_tensorflow_1(images.float(), RESOLUTION)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T

    @classmethod
    def load(cls, path: Path) -> Inception:
        """From a .safetensors file. Raises RcdeployError that says where the weights come from, or what is wrong."""
        if not path.is_file():
            raise RcdeployError(f"there are no weights of Inception-v3 at {path}", fix=HOW_TO_GET_INCEPTION)
        if path.suffix != ".safetensors":
            raise RcdeployError(
                f"{path} is not a .safetensors file: pickled weights are never loaded", fix=HOW_TO_GET_INCEPTION
            )
        network = cls()
        stored = load_tensors(path)
        expected = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
        wrong = [n for n, t in expected.items() if n not in stored or stored[n].shape != t.shape]
        if wrong:
            what = f"{wrong[0]} {'has another shape' if wrong[0] in stored else 'is missing'}"
            more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
            raise RcdeployError(
                f"{path} does not hold the Inception-v3 of the FID: {what}{more}", fix=HOW_TO_GET_INCEPTION
            )
        network.load_state_dict({name: stored[name].float() for name in expected}, strict=False)
        return network.requires_grad_(False).eval()


def resized_as_tensorflow_1(images: Tensor, resolution: int) -> Tensor:
    """[n, 3, h, w] -> [n, 3, resolution, resolution], bilinear: pixel i is sampled at i x (size / resolution)."""
    for dim in (2, 3):
        size = images.shape[dim]
        position = torch.arange(resolution, device=images.device) * (size / resolution)
        low = position.long().clamp(max=size - 1)
        fraction = (position - low).view(-1, 1) if dim == 2 else position - low
        first = images.index_select(dim, low)
        second = images.index_select(dim, (low + 1).clamp(max=size - 1))
        images = torch.lerp(first, second, fraction.to(images.dtype).expand_as(first))
    return images
