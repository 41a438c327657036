"""From a recipe's section, `--set` and `--seed` to a stage's config."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from mote.errors import RecipeError
from mote.recipe import from_plain, override, read_recipe

T = TypeVar("T")


def resolve(
    cls: type[T], section: str, recipe: Path | None, settings: Sequence[str] | None, seed: int | None = None
) -> T:
    """The config `cls` from `section` of the `recipe` file (defaults without one), changed by `settings`
    and `seed`.

    Raises RecipeError for a file without that section, an unknown key or a value of another type.
    """
    plain: dict[str, Any] = {}
    if recipe is not None:
        sections = read_recipe(recipe)
        if section not in sections:
            raise RecipeError(f"{recipe}: has no section {section!r}; it has {', '.join(sorted(sections))}")
        plain = sections[section] or {}
    config = from_plain(cls, override(plain, settings or ()), section if recipe else "")
    if seed is not None and any(field.name == "seed" for field in fields(cast(Any, cls))):
        config = cast(T, replace(cast(Any, config), seed=seed))
    return config
