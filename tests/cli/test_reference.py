"""The reference pages name every verb, option and recipe key that there is."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mote.cli.experiment import Experiment

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def sections() -> dict[str, str]:
    """Heading to text of recipe.md; "align, instruct, experts" stands for each of the three."""
    parts = re.split(r"^## (.+)$", (REFERENCE / "recipe.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        found |= dict.fromkeys(heading.split(", "), text)
    return found


@pytest.mark.parametrize("field", dataclasses.fields(Experiment), ids=lambda field: field.name)
def test_every_key_of_a_recipe_is_explained(field: "dataclasses.Field[object]") -> None:
    hint = typing.get_type_hints(Experiment)[field.name]
    section = next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)
    if not dataclasses.is_dataclass(section):
        assert f"`{field.name}`" in sections()["Top level"]
        return
    text = sections()[field.name]
    documented = set(re.findall(r"`(\w+)`", text))
    missing = {item.name for item in dataclasses.fields(section)} - documented
    assert not missing, f"recipe.md, section {field.name}, does not name {sorted(missing)}"
    first = "".join(re.findall(r"^\|([^|]+)\|", text, flags=re.MULTILINE))
    invented = set(re.findall(r"`(\w+)`", first)) - {item.name for item in dataclasses.fields(section)}
    assert not invented, f"recipe.md, section {field.name}, names {sorted(invented)}, which are no settings"


def test_every_verb_and_shared_option_is_in_the_table() -> None:
    from mote.cli.app import app

    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"`mote {command.name}" in text
    for option in ("--out", "--recipe", "--set", "--seed", "--threads", "--resume", "--force", "--json", "--debug"):
        assert f"`{option}" in text
