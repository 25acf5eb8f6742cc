"""The documentation: every recipe key has a sentence."""

import pytest

from rcdeploy.recipe import SECTIONS, Recipe

KEYS = [(name, key, field) for name, section in SECTIONS.items() for key, field in section.model_fields.items()]
KEYS.append(("recipe", "name", Recipe.model_fields["name"]))


@pytest.mark.parametrize(("section", "key", "field"), KEYS, ids=[f"{section}.{key}" for section, key, _ in KEYS])
def test_every_recipe_key_has_a_sentence(section, key, field):
    assert field.description and len(field.description.split()) > 2, f"{section}.{key} has no description"
