"""Knobs: what people write. A recipe is a value of such a model, in Python or YAML, overridden with `--set a.b=value`."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

R = TypeVar("R", bound="Knobs")


class Knobs(BaseModel):
    """Frozen settings of one thing. A misspelt knob is refused with its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def changed(self: R, **updates: Any) -> R:
        """A validated copy (pydantic's own `model_copy` does not validate)."""
        return type(self).model_validate(self.model_dump() | updates)


def load(model: type[R], base: R | Path | dict[str, Any], overrides: list[str] = []) -> R:  # noqa: B006
    """A recipe from a value, a YAML file or a plain mapping, with `path.to.knob=value` overrides, validated once more.

    A part of a path may be the place in a list, counted from 0: `phases.1.steps=500`.

    Raises ValueError with one sentence that names the knob, what was found and what was expected.
    """
    name, tree = _tree(base)
    for override in overrides:
        _override(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{name}: {_sentence(model, tree, error)}") from None


def dump(recipe: Knobs) -> str:
    """YAML that `load` turns back into an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _tree(base: Knobs | Path | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(base, Knobs):
        return "recipe", base.model_dump(mode="json")
    if isinstance(base, dict):
        return "recipe", yaml.safe_load(yaml.safe_dump(base))
    try:
        tree = yaml.safe_load(base.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{base}: {error.strerror}, expected a recipe in YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{base}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{base}: holds {type(tree).__name__}, expected a mapping of knobs")
    return str(base), tree


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {override}: expected path.to.knob=value")
    *parents, last = path.split(".")
    node: dict[str, Any] | list[Any] = tree
    for depth, name in enumerate(parents, 1):
        key = _key(node, name, override)
        child = node.setdefault(key, None) if isinstance(node, dict) else node[key]
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict | list):
            raise ValueError(f"--set {override}: {'.'.join(parents[:depth])} is a value, not a group of knobs")
        node = child
    try:
        node[_key(node, last, override)] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {override}: {text!r} is not a YAML value") from None


def _key(node: dict[str, Any] | list[Any], name: str, override: str) -> Any:
    """Of a list, the place of one of its entries, counted from 0."""
    if isinstance(node, dict):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise ValueError(f"--set {override}: {name} is none of the {len(node)} places of a list, expected 0 and on")
    return int(name)


def _sentence(model: type[Knobs], tree: dict[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    path = _path(tree, first["loc"]) or "the recipe"
    if first["type"] == "extra_forbidden":
        near = _nearest(path, [known for known in _paths(model.model_json_schema()) if known != path])
        return f"unknown knob {path}" + (f", did you mean {near}?" if near else "")
    found = first.get("input")
    shown = f", found {found!r}" if not isinstance(found, dict | BaseModel) else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":  # a model's own sentence
        said = str(first.get("ctx", {}).get("error"))
        return f"{said if path == 'the recipe' else f'{path}: {said}'}{shown}{more}"
    return f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}{shown}{more}"


def _path(tree: Any, loc: tuple[int | str, ...]) -> str:
    """As people write it: pydantic puts the tag of a chosen union member into the path."""
    names: list[str] = []
    node = tree
    for part in loc:
        if isinstance(node, dict) and part not in node and part == node.get("kind"):
            continue
        names.append(str(part))
        node = node.get(part) if isinstance(node, dict) else None
    return ".".join(names)


def _nearest(path: str, known: list[str]) -> str | None:
    """The knob whose name is most like the last part of `path`; of several that share it, the one whose whole path is."""
    name = path.rpartition(".")[2]
    near = [other for other in known if _is_near(name, other.rpartition(".")[2])]
    return max(
        near, key=lambda other: (_likeness(name, other.rpartition(".")[2]), _likeness(path, other)), default=None
    )


def _is_near(name: str, other: str) -> bool:
    """Misspelt, or with a word more or less. Below 0.75 one slip of the pen in fifty is missed, but `device` was like `decoder`."""
    words, others = set(name.split("_")), set(other.split("_"))
    return words <= others or others <= words or _likeness(name, other) >= 0.75


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def _paths(schema: dict[str, Any]) -> list[str]:
    """Of all knobs, from the top: `checks.picture.luminance`. What lists and mappings hold is named without its place."""
    groups, found = schema.get("$defs", {}), dict[str, None]()

    def walk(node: Any, path: str, above: tuple[str, ...]) -> None:
        if not isinstance(node, dict):
            return
        name = node.get("$ref", "").rpartition("/")[2]
        if name and name not in above:
            walk(groups[name], path, (*above, name))
        for other in (*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items"), *node.get("prefixItems", ())):
            walk(other, path, above)
        for knob, below in node.get("properties", {}).items():
            found[f"{path}{knob}"] = None
            walk(below, f"{path}{knob}.", above)

    walk(schema, "", ())
    return list(found)
