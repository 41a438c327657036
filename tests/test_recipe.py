"""The recipe loader: types and keys are checked, YAML scalars are 1.2's, `--set` overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mote.errors import RecipeError
from mote.recipe import from_plain, override, read_recipe, to_plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1e-3
    mode: Literal["add", "gated"] = "add"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise RecipeError("rate is negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    name: str | None = None
    on: bool = False
    where: Path = Path("x")
    inner: Inner = field(default_factory=Inner)
    layers: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    counts: dict[str, int] = field(default_factory=dict)
    many: tuple[Inner, ...] = ()
    either: Literal["all"] | tuple[int, ...] = "all"
    free: Any = None


def test_every_type_is_built_and_taken_apart_again() -> None:
    plain = {
        "steps": 3,
        "name": "n",
        "on": True,
        "where": "a/b",
        "inner": {"rate": 2, "mode": "gated"},
        "layers": [1, 2],
        "pair": [4, "four"],
        "counts": {"naming": 5},
        "many": [{"rate": 0.5, "mode": "add"}],
        "either": [3],
        "free": {"x": [1]},
    }
    built = from_plain(Outer, plain)
    assert built.inner == Inner(rate=2.0, mode="gated")
    assert isinstance(built.inner.rate, float)
    assert built.layers == (1, 2)
    assert built.where == Path("a/b")
    assert built.many == (Inner(rate=0.5),)
    assert built.either == (3,)
    assert to_plain(built) == {**plain, "inner": {"rate": 2.0, "mode": "gated"}}
    assert from_plain(Outer, to_plain(built)) == built


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"steps": 1, "lyers": []}, "lyers: unknown key 'lyers'; did you mean 'layers'?"),
        ({"steps": 1, "inner": {"rte": 1}}, "inner.rte: unknown key 'rte'; did you mean 'rate'?"),
        ({"steps": 1, "many": [{"rate": "x"}]}, "many[0].rate: expected a number, not 'x'"),
        ({"steps": 1, "zzzz": 0}, "known keys: counts"),
        ({}, "steps is missing"),
        ({"steps": True}, "steps: expected a whole number, not True"),
        ({"steps": 1.0}, "steps: expected a whole number, not 1.0"),
        ({"steps": 1, "on": 1}, "on: expected true or false, not 1"),
        ({"steps": 1, "inner": {"mode": "sub"}}, "inner.mode: 'sub' is not one of 'add', 'gated'"),
        ({"steps": 1, "inner": {"rate": -1}}, "rate is negative"),
        ({"steps": 1, "inner": [1]}, "inner: expected settings (key: value), not [1]"),
        ({"steps": 1, "layers": "12"}, "layers: expected a list [..], not '12'"),
        ({"steps": 1, "pair": [1]}, "pair: expected 2 values, not 1"),
        ({"steps": 1, "name": 3}, "name: expected text, not 3"),
        ({"steps": 1, "either": "some"}, "either: expected"),
    ],
)
def test_what_does_not_fit_is_named(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_plain(Outer, plain)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_scalars_are_those_of_version_1_2(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1e-3\nb: no\nc: true\nd: 2\ne: 2026-11-22\nf: -.5\ng: ~\nh: 1.0E+2\n")
    assert read_recipe(path) == {
        "a": 1e-3, "b": "no", "c": True, "d": 2, "e": "2026-11-22", "f": -0.5, "g": None, "h": 100.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "r.yaml:2: not valid YAML: the key 'a' stands twice"),
        ("a: [1\nb: 2\n", "r.yaml:2: not valid YAML"),
        ("- 1\n", "a recipe is a mapping"),
        ("a: !!python/object/apply:os.system ['true']\n", "r.yaml:1: not valid YAML: could not determine"),
    ],
)
def test_what_is_no_recipe_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read this recipe: No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipe(tmp_path / "b.yaml")


def test_set_overrides_without_touching_the_original() -> None:
    plain: dict[str, Any] = {"a": {"b": 1, "c": [1]}, "n": None}
    changed = override(plain, ["a.b=2e-4", "a.c=[3, 4]", "new.key=word", "n.x=true"])
    assert changed == {"a": {"b": 2e-4, "c": [3, 4]}, "new": {"key": "word"}, "n": {"x": True}}
    assert plain == {"a": {"b": 1, "c": [1]}, "n": None}


@pytest.mark.parametrize("setting", ["a.b", "=1", "a..b=1", "a.b.c=1"])
def test_a_setting_that_makes_no_sense(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        override({"a": {"b": 1}}, [setting])
