"""Configurations: pydantic models, read from YAML, overridden by ``key=value``, unknown keys refused by name."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError


class Config(BaseModel):
    """Base of all configurations: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=Config)


def load_config(model: type[C], path: files.Location | None = None, overrides: Sequence[str] = ()) -> C:
    """``model`` with its defaults, then the YAML file, then ``key=value`` overrides (nested keys as ``a.b=1``).

    Values of overrides are YAML scalars. Raises SpatialAvatarError naming the file or override, the key, and for an
    unknown key the nearest known one.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(files.read_bytes(path)) or {}
        except (yaml.YAMLError, ValueError) as e:  # ValueError: a day that is none
            raise SpatialAvatarError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
        if not isinstance(values, dict):
            raise SpatialAvatarError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SpatialAvatarError(f"--set {override}: expected key=value, for example --set seed=1")
        *parents, leaf = key.split(".")
        node = values
        for parent in parents:
            below = {} if node.get(parent) is None else node[parent]  # absent, or null in the file
            if not isinstance(below, dict):
                raise SpatialAvatarError(f"--set {override}: {parent} holds a value, not further keys")
            node[parent] = dict(below)  # its own: YAML's anchors share what they name
            node = node[parent]
        try:
            node[leaf] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise SpatialAvatarError(f"--set {override}: {text} is not a YAML value") from None
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise SpatialAvatarError(f"{path or 'configuration'}: {_describe(model, e)}") from None


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    """The first fault; an unknown key before others, for it may be why another is missing."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "value_error":  # a check of our own, which says what it found, or must not
        return f"{where + ': ' if where else ''}{first['ctx']['error']}"
    if first["type"] == "model_type":
        section = _section(model, first["loc"])
        return f"{where}: expected keys below it, found {first['input']!r}; there are {', '.join(section.model_fields)}"
    if first["type"] != "extra_forbidden":
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
        return f"{where + ': ' if where else ''}{first['msg'].lower()}{found}"
    return f"unknown key {where}; {_hint(model, first['loc'])}"


def _hint(model: type[BaseModel], where: Sequence[int | str]) -> str:
    """For an unknown key: the same name in another section, else the nearest beside it, else the nearest anywhere."""
    *parents, name = where
    beside = {key: ".".join(str(part) for part in (*parents, key)) for key in _section(model, parents).model_fields}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(_keys(model))}
    for known, cutoff in ((anywhere, 1.0), (beside, 0.6), (anywhere, 0.6)):
        if near := difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff):
            return f"did you mean {known[near[0]]}?"
    return f"known keys: {', '.join(beside.values())}"


def _section(model: type[BaseModel], where: Sequence[int | str]) -> type[BaseModel]:
    for part in where:
        if field := model.model_fields.get(str(part)):  # not a place in a list
            model = _sections(field.annotation)[0]
    return model


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The models in a field's type: itself, or what is optional or listed."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _sections(part)]


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys, those of a section as ``section.key``."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        keys += [key for section in _sections(field.annotation) for key in _keys(section, f"{prefix}{name}.")]
    return keys
