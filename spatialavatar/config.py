"""Configurations: pydantic models, read from YAML, overridden by ``key=value``, unknown keys refused by name."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

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
        except yaml.YAMLError as e:
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
            if node.get(parent) is None:  # absent, or null in the file
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise SpatialAvatarError(f"--set {override}: {parent} holds a value, not further keys")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SpatialAvatarError(f"--set {override}: {text} is not a YAML value") from None
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise SpatialAvatarError(f"{path or 'configuration'}: {_describe(model, e)}") from None


def _describe(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":  # a check of our own, which says what it found, or must not
        return f"{where + ': ' if where else ''}{first['ctx']['error']}"
    if first["type"] != "extra_forbidden":
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
        return f"{where + ': ' if where else ''}{first['msg'].lower()}{found}"
    known = sorted(_keys(model))
    near = difflib.get_close_matches(where, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {where}; {hint}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            keys += _keys(nested, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
