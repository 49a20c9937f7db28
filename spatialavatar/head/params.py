"""HeadParams: what a tracker says about a head at some instants (docs/formats.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.indexing import row_slice


@dataclass(frozen=True)
class HeadParams:
    """Parameters of a morphable head for B subjects or instants.

    Rotations are axis-angle in radians, each in its parent joint's frame; lengths are metres in the head's own
    frame (+x the subject's left, +y up, +z out of the face).
    """

    shape: Float[Tensor, "B S"]
    expression: Float[Tensor, "B E"]
    global_rotation: Float[Tensor, "B 3"]  # about the root joint
    neck: Float[Tensor, "B 3"]
    jaw: Float[Tensor, "B 3"]
    eyes: Float[Tensor, "B 6"]  # left eye, right eye
    translation: Float[Tensor, "B 3"]  # after the global rotation
    static_offset: Float[Tensor, "B V 3"] | None = None  # added to the template

    @staticmethod
    def neutral(
        batch: int,
        shape_codes: int,
        expression_codes: int,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> "HeadParams":
        """All zero: the mean head at rest."""

        def zeros(n: int) -> Tensor:
            return torch.zeros(batch, n, device=device, dtype=dtype)

        return HeadParams(zeros(shape_codes), zeros(expression_codes), zeros(3), zeros(3), zeros(3), zeros(6), zeros(3))

    @property
    def batch(self) -> int:
        return self.expression.shape[0]

    def map(self, function: Any) -> "HeadParams":
        """The same value with ``function`` applied to every tensor."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: None if t is None else function(t) for name, t in tensors.items()}
        return HeadParams(**mapped)

    def to(self, *args: Any, **kwargs: Any) -> "HeadParams":
        return self.map(lambda t: t.to(*args, **kwargs))

    @staticmethod
    def cat(rows: Sequence["HeadParams"]) -> "HeadParams":
        """Several along the batch axis; where some have a static offset, that of the others is zero."""
        given = [row.static_offset for row in rows if row.static_offset is not None]
        joined: dict[str, Any] = {}
        for field in fields(HeadParams):
            values = [getattr(row, field.name) for row in rows]
            if field.name == "static_offset":
                values = [torch.zeros_like(given[0]) if v is None else v for v in values] if given else []
            joined[field.name] = torch.cat(values) if values else None
        return HeadParams(**joined)

    def __getitem__(self, index: Any) -> "HeadParams":
        """Instants by slice, list or index tensor; an int keeps the batch axis and is checked (IndexError)."""
        if isinstance(index, int):
            index = row_slice(index, self.batch)
        return self.map(lambda t: t[index])

    def with_identity(self, shape: Float[Tensor, "1 S"], static_offset: Float[Tensor, "1 V 3"] | None) -> "HeadParams":
        """This motion on one identity: cross-reenactment."""
        offset = None if static_offset is None else static_offset.expand(self.batch, -1, -1)
        return replace(self, shape=shape.expand(self.batch, -1), static_offset=offset)
