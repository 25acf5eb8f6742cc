"""Feature taps: which blocks of student and teacher are compared, and how their outputs are caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rcdeploy_runtime.errors import RcdeployError


@dataclass(frozen=True)
class Tap:
    """Names of the two modules, and the channels of what they put out."""

    teacher: str
    student: str
    teacher_channels: int
    student_channels: int


def taps(teacher_config: dict[str, Any], student_config: dict[str, Any]) -> list[Tap]:
    """The paper's taps: after each UNet block.

    Block students: all down and up blocks; where the innermost stage is gone (b-tiny), its last down block ends without
    downsampling, so it meets the teacher's last attention there, and the up blocks meet the teacher's shifted by one.
    Channel students: down blocks, mid block, up blocks.
    Raises RcdeployError for KOALA students, whose taps are self-attentions: they need SDXL teachers, which come later.
    """
    if isinstance(teacher_config.get("transformer_layers_per_block"), list):
        raise RcdeployError("feature taps of SDXL's students (KOALA) are not there yet", fix="Set loss.feature = 0.")
    wide, narrow = teacher_config["block_out_channels"], student_config["block_out_channels"]
    stages, kept = len(wide), len(narrow)
    gone = stages - kept
    pairs = [(f"down_blocks.{i}", f"down_blocks.{i}", wide[i], narrow[i]) for i in range(kept)]
    if gone:
        layers = student_config["layers_per_block"]
        last = kept - 1
        pairs[last] = (
            f"down_blocks.{last}.attentions.{teacher_config['layers_per_block'] - 1}",
            f"down_blocks.{last}.attentions.{layers - 1}",
            wide[last],
            narrow[last],
        )
    same_layers = teacher_config["layers_per_block"] == student_config["layers_per_block"]
    if same_layers and not gone and student_config.get("mid_block_type", "") is not None:
        pairs.append(("mid_block", "mid_block", wide[-1], narrow[-1]))
    pairs += [(f"up_blocks.{i + gone}", f"up_blocks.{i}", wide[::-1][i + gone], narrow[::-1][i]) for i in range(kept)]
    return [Tap(*pair) for pair in pairs]


class FeatureTaps:
    """Forward hooks that keep the outputs of the named modules while `watching()`.

    Outside of it nothing is kept: a checkpointed block that is run again in the backward pass leaves no trace.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self.names, self._kept, self._on = names, {}, False  # type: tuple[list[str], dict[str, Tensor], bool]
        for name in names:
            module.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._on:
                self._kept[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)

        return keep

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """Yields a list that holds the features, in the order of the names, when the block ends."""
        features: list[Tensor] = []
        self._on = True
        try:
            yield features
            features += [self._kept[name] for name in self.names]
        finally:
            self._on = False
            self._kept.clear()
