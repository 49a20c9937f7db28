"""Gaussians bound to triangles (local) and placed in the world (method.md section 1)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.indexing import row_slice


@dataclass(frozen=True)
class LocalGaussians:
    """N Gaussians of B subjects, each in its parent triangle's frame (lengths in units of the triangle's scale)."""

    position: Float[Tensor, "B N 3"]
    rotation: Float[Tensor, "B N 4"]  # wxyz, normalised on use
    log_scale: Float[Tensor, "B N 3"]
    color: Float[Tensor, "B N C"]  # the first three in [0, 1] (RGB), raw beyond
    opacity_logit: Float[Tensor, "B N"]

    @property
    def batch(self) -> int:
        return self.position.shape[0]

    @property
    def count(self) -> int:
        return self.position.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, *args: Any, **kwargs: Any) -> "LocalGaussians":
        return LocalGaussians(**{name: t.to(*args, **kwargs) for name, t in self.tensors().items()})

    @staticmethod
    def cat(subjects: Sequence["LocalGaussians"]) -> "LocalGaussians":
        """Several along the batch axis."""
        names = [f.name for f in fields(LocalGaussians)]
        return LocalGaussians(**{name: torch.cat([getattr(s, name) for s in subjects]) for name in names})

    def __getitem__(self, index: Any) -> "LocalGaussians":
        """Subjects by slice, list or index tensor; an int keeps the batch axis and is checked (IndexError)."""
        if isinstance(index, int):
            index = row_slice(index, self.batch)
        return LocalGaussians(**{name: t[index] for name, t in self.tensors().items()})


@dataclass(frozen=True)
class WorldGaussians:
    """Exactly what ``gsplat.rasterization`` takes: metres, activated values."""

    means: Float[Tensor, "B N 3"]
    quats: Float[Tensor, "B N 4"]  # wxyz, need not be unit
    scales: Float[Tensor, "B N 3"]  # standard deviations
    colors: Float[Tensor, "B N C"]
    opacities: Float[Tensor, "B N"]

    def to(self, *args: Any, **kwargs: Any) -> "WorldGaussians":
        return WorldGaussians(**{f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self)})

    def __getitem__(self, index: Any) -> "WorldGaussians":
        if isinstance(index, int):
            index = row_slice(index, self.means.shape[0])
        return WorldGaussians(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
