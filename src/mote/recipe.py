"""Recipes: strict YAML to frozen dataclasses, one dataclass per stage.

A recipe is data, and each stage owns the dataclass that its section becomes. `from_plain` builds it: a key
that the dataclass does not have is an error that names the key and the nearest known one, and a value of
another type than the field's annotation is an error that names both. `override` is `--set a.b=c`. Nothing
here knows a stage.

YAML as read here is version 1.2's scalars: `1e-3` is a number (PyYAML alone reads it as text), only `true`
and `false` are booleans (`no` and `on` are words), and a key that stands twice in one mapping is an error.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from mote.errors import MoteError, RecipeError

T = TypeVar("T")


def from_plain(cls: type[T], plain: Mapping[str, Any] | None, where: str = "") -> T:
    """Builds the dataclass `cls` from plain data (what YAML or JSON gives), checking keys and types.

    `where` is the dotted place of `plain` in its recipe, for messages ("" at the top). Field types may be
    bool, int, float (an int will do), str, Path, None, Any, Literal, unions of these, `tuple[X, ...]`,
    `tuple[X, Y]`, `list[X]`, `dict[str, X]` and dataclasses, at any depth. Raises RecipeError for an
    unknown or missing key, a value of another type, or a value that the dataclass's own checks refuse.
    """
    place = where or "the recipe"
    if plain is None:
        plain = {}
    if not isinstance(plain, Mapping):
        raise RecipeError(f"{place}: expected settings (key: value), not {_shown(plain)}")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for key in plain:
        if key not in fields:
            raise RecipeError(_unknown_key(_join(where, str(key)), str(key), fields))
    hints = typing.get_type_hints(cls)
    values = {key: _convert(value, hints[key], _join(where, key)) for key, value in plain.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"{_join(where, name)} is missing; it has no default")
    try:
        return cls(**values)
    except (MoteError, ValueError) as error:
        raise RecipeError(f"{place}: {error}") from None


def to_plain(value: Any) -> Any:
    """Inverse of `from_plain`: dataclasses, tuples and paths become dicts, lists and strings, as JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a YAML file as plain data. Raises RecipeError naming file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"{path}: cannot read this recipe: {reason}") from None
    plain = _parse_yaml(text, str(path))
    if not isinstance(plain, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections to settings, not {_shown(plain)}")
    return plain


def override(plain: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of `plain` with each "a.b=c" of `settings` put in; c is read as YAML, so 3, true and [1, 2]
    have types.

    A section that is absent is made; whether its keys exist is for `from_plain` to say.
    """
    changed = {key: _copy(value) for key, value in plain.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(f"--set {setting}: expected section.key=value, such as --set experts.seed=1")
        node = changed
        for depth, key in enumerate(keys[:-1]):
            child = node.setdefault(key, {})
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise RecipeError(f"--set {setting}: {'.'.join(keys[: depth + 1])} is a value, not a section")
            node = child
        node[keys[-1]] = _parse_yaml(text, f"--set {path}")
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(place: str, key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known)) or 'none'}"
    return f"{place}: unknown key {key!r}; {hint}"


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it, or a RecipeError naming `where`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(hint), where)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if not any(value == option and type(value) is type(option) for option in allowed):
            raise RecipeError(f"{where}: {_shown(value)} is not one of {', '.join(map(repr, allowed))}")
        return value
    if origin in (tuple, list, Sequence, dict, Mapping):
        return _convert_container(value, hint, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, cast(type, hint)):
            return value
        return from_plain(cast(type[Any], hint), value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    remaining = [option for option in options if option is not type(None)]
    errors: list[RecipeError] = []
    for option in remaining:
        try:
            return _convert(value, option, where)
        except RecipeError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    names = " or ".join(_type_name(option) for option in options)
    raise RecipeError(f"{where}: expected {names}, not {_shown(value)}")


def _convert_container(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: expected settings (key: value), not {_shown(value)}")
        return {str(key): _convert(item, args[1], _join(where, str(key))) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        raise RecipeError(f"{where}: expected a list [..], not {_shown(value)}")
    if origin is not tuple or (len(args) == 2 and args[1] is Ellipsis):
        items = [_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if len(value) != len(args):
        raise RecipeError(f"{where}: expected {len(args)} values, not {len(value)}")
    return tuple(_convert(item, arg, f"{where}[{i}]") for i, (item, arg) in enumerate(zip(value, args, strict=True)))


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint in (Any, object):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    exact: Callable[[], bool] = lambda: type(value) is hint  # noqa: E731 - bool is an int to isinstance
    if hint in (bool, int, str, type(None)) and exact():
        return value
    raise RecipeError(f"{where}: expected {_type_name(hint)}, not {_shown(value)}")


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    if hint is type(None):
        return "null"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _parse_yaml(text: str, source: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{source}{line}: not valid YAML: {problem}") from None


@functools.cache
def _loader() -> Any:
    """PyYAML's safe loader with YAML 1.2's booleans and numbers, refusing a key that stands twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if not pair[0].endswith((":bool", ":float", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
    number = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return Loader
