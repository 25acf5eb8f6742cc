"""The part of an estimate that does not depend on the device: stages, costs of the units of work, parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..bench.macs import parameters
from ..distill.build_run import accumulation_steps
from ..recipe import Recipe
from ..student.spec import student_config
from .on_meta import Cost, cost_of
from .stages import Stage, make_stages, text_cache_bytes
from .work_units import Sizes, Unit, build_networks, make_units, tiny_decoder
from .workload import Shapes, count_prompts, teacher_shapes


@dataclass(frozen=True)
class Plan:
    """The work of a recipe.

    student: config of its UNet. dtype: the teacher's, and of mixed precision. parameters: of each network; "trained" is
    the student with its projectors. units: of work, on the meta device. text_cache: bytes. notes: what is assumed.
    """

    recipe: Recipe
    shapes: Shapes
    student: dict[str, Any]
    sizes: Sizes
    num_processes: int
    dtype: torch.dtype
    parameters: dict[str, int]
    units: dict[str, Unit]
    stages: list[Stage]
    text_cache: int
    notes: list[str]

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Of a call of each unit of work but "update"; counting takes seconds."""
        half = self.dtype if self.dtype != torch.float32 else None
        costs = {
            name: cost_of(unit.run, autocast=half if unit.autocast else None)
            for name, unit in self.units.items()
            if name != "update"
        }
        if accumulation_steps(self.recipe.train, self.num_processes) > 1:
            # later micro-batches find the gradients of earlier ones in memory
            first = costs["step"]
            later = cost_of(self.units["step"].run, autocast=half)
            costs["step"] = replace(first, peak_bytes=max(first.peak_bytes, first.final_bytes + later.peak_bytes))
        return costs

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Of a call of each unit of work."""
        return {name: unit.batch_size for name, unit in self.units.items()}

    @property
    def needed_units(self) -> list[str]:
        """The units of work that the stages consist of."""
        return [name for name in self.units if any(stage.samples.get(name) for stage in self.stages)]

    def calls(self, stage: Stage) -> dict[str, float]:
        """Calls of each unit of work in a stage."""
        return {name: samples / self.batch_sizes[name] for name, samples in stage.samples.items() if samples}


def make_plan(recipe: Recipe, num_processes: int, dtype: torch.dtype) -> Plan:
    """Raises RcdeployError for what the run itself would refuse. dtype: the teacher's, and of mixed precision."""
    shapes = teacher_shapes(recipe.teacher.path)
    student, student_notes = student_config(recipe.student_spec, shapes.configs["unet"])
    accumulation = accumulation_steps(recipe.train, num_processes)
    micro_batch_size = recipe.train.global_batch_size // (accumulation * num_processes)
    prompts = count_prompts(recipe)
    sizes = Sizes(shapes.latent(recipe.cache.resolution), shapes.tokens, micro_batch_size)
    networks = build_networks(shapes.configs, student, recipe, "meta", dtype)
    counts = {name: parameters(getattr(networks, name)) for name in ("teacher", "text_encoder", "vae")}
    if recipe.decoder:
        counts["decoder"] = parameters(tiny_decoder(shapes.configs["vae"], recipe.decoder, torch.device("meta")))
    counts |= {"student": parameters(networks.student.unet), "trained": parameters(networks.student)}
    return Plan(
        recipe=recipe,
        shapes=shapes,
        student=student,
        sizes=sizes,
        num_processes=num_processes,
        dtype=dtype,
        parameters=counts,
        units=make_units(networks, recipe, sizes),
        stages=make_stages(recipe, shapes, prompts, in_half=dtype != torch.float32, parameters=counts),
        text_cache=text_cache_bytes(recipe, shapes, prompts, dtype != torch.float32),
        notes=[*shapes.notes, *prompts.notes, *student_notes],
    )
