"""The [student] section of a recipe: which rule makes the student of its teacher. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from rcdeploy_runtime.errors import RcdeployError

from .recipe_section import LayerCount, Section, Seed
from .student.spec import StudentSpec, find_student


class Student(Section):
    name: str = Field(
        "c-micro", description="architecture, one of those that `rcdeploy students` lists (paper, Table A)"
    )
    width: float | None = Field(
        None,
        gt=0,
        le=1,
        description="width as a fraction of the teacher's: of a channel student, instead of `name`; beside the `name` "
        "of a block, KOALA or SLIM student that one, narrower (not in the paper)",
    )
    layers: list[LayerCount] | None = Field(
        None,
        min_length=1,
        description="layers per block of each stage that the student has, outermost first, such as [2, 1, 1, 2]; "
        "beside the `name` of a block or SLIM student, in place of its single layer (not in the paper)",
    )
    init: Literal["random", "teacher", "sliced"] | None = Field(
        None,
        description="first weights: random, copied from the teacher (block students), or sliced, every n-th of its "
        "channels (students with fewer of them; not in the paper). By default teacher where no channels are removed, "
        "else random (the paper)",
    )
    seed: Seed = Field(0, description="seed of random first weights and of the projectors")

    @property
    def first_weights(self) -> Literal["random", "teacher", "sliced"]:
        if self.init:
            return self.init
        return "teacher" if self.spec.width == 1 else "random"

    @property
    def spec(self) -> StudentSpec:
        """The rule that makes the student of a teacher. Raises RcdeployError for an unknown name, and for layers beside
        the name of a student that has no number of them.
        """
        named = find_student(self.name)
        if self.layers is not None:
            if named.family != "block":
                raise RcdeployError(
                    f"layers go beside the name of a block student, and {self.name} is none",
                    fix='Set student.name = "b-base"; b-small lacks the mid block, b-tiny also the innermost stage.',
                )
            named = replace(named, single_layer=False, layers=tuple(self.layers))
        if self.width is None:
            return named
        return replace(StudentSpec(width=self.width) if self._is_of_width else named, width=self.width)

    @property
    def label(self) -> str:
        """What a person calls the student: c-micro, width 0.3, b-tiny of width 0.7, b-base of layers 2/1/1/2."""
        if self._is_of_width and self.width is not None:
            return f"width {self.width:g}"
        layers = [f"layers {'/'.join(map(str, self.layers))}"] if self.layers else []
        changes = [*layers, *([f"width {self.width:g}"] if self.width is not None else [])]
        return f"{self.name} of {' and '.join(changes)}" if changes else self.name

    @property
    def _is_of_width(self) -> bool:
        """Whether the width alone makes the student."""
        return "name" not in self.model_fields_set or find_student(self.name).family == "channel"
