"""The metrics that look through a pretrained network: CSIM, AED, APD and AKD (method.md section 5).

The networks are not ours. A package that has one offers it as an entry point of the group ``spatialavatar.estimators``,
named ``identity``, ``tracking`` or ``keypoints``: a callable that takes a device and gives the estimator. Pictures are
[B H W 3], RGB in [0, 1], and may lie on any device; where an estimator finds no face, it answers NaN for that picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError, in_short

GROUP = "spatialavatar.estimators"
METRICS_OF = {"identity": ("csim",), "tracking": ("aed", "apd"), "keypoints": ("akd",)}  # by entry point
METRICS = tuple(metric for metrics in METRICS_OF.values() for metric in metrics)


class Tracked(NamedTuple):
    expression: Float[Tensor, "B E"]  # codes of the tracker's own head model
    pose: Float[Tensor, "B P"]  # its pose parameters, radians


class IdentityEstimator(Protocol):
    def __call__(self, pictures: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B D"]:
        """An embedding of who is seen, of any length (ArcFace and the like)."""
        ...


class TrackingEstimator(Protocol):
    def __call__(self, pictures: Float[Tensor, "B H W 3"]) -> Tracked:
        """Expression and pose of a head model, found anew in each picture."""
        ...


class KeypointEstimator(Protocol):
    def __call__(self, pictures: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B L 2"]:
        """Positions of L facial keypoints in pixels of these pictures; NaN for one that is not found."""
        ...


@dataclass(frozen=True)
class Estimators:
    """What is installed; ``names`` says of each which package, in what version, offers it."""

    identity: IdentityEstimator | None = None
    tracking: TrackingEstimator | None = None
    keypoints: KeypointEstimator | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def compare(
        self, a: Float[Tensor, "B H W 3"], b: Float[Tensor, "B H W 3"]
    ) -> dict[str, Float[Tensor, " B"] | None]:
        """``METRICS`` of pictures in pairs, None without their estimator; NaN where one found no face in either.

        Raises SpatialAvatarError for an estimator that fails, or answers in another shape than it should.
        """
        found: dict[str, Float[Tensor, " B"] | None] = dict.fromkeys(METRICS)
        if self.identity is not None:
            found["csim"] = csim(*(_checked(self._answer("identity", p), (len(p), None), "identity") for p in (a, b)))
        if self.tracking is not None:
            first, second = self._answer("tracking", a), self._answer("tracking", b)
            for metric, part in zip(METRICS_OF["tracking"], Tracked._fields):
                codes = (getattr(tracked, part) for tracked in (first, second))
                found[metric] = mean_distance(*(_checked(c, (len(a), None), f"tracking ({part})") for c in codes))
        if self.keypoints is not None:
            points = (self._answer("keypoints", p) for p in (a, b))
            found["akd"] = akd(*(_checked(answer, (len(a), None, 2), "keypoints") for answer in points))
        return found

    def _answer(self, name: str, pictures: Float[Tensor, "B H W 3"]) -> Any:
        try:
            return getattr(self, name)(pictures)
        except Exception as e:  # another's code
            raise SpatialAvatarError(
                f"{self.names.get(name, GROUP)}: its {name} estimator failed ({type(e).__name__}: {in_short(e)}); "
                "repair the package, or uninstall it to leave its metrics out"
            ) from e


def csim(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """CSIM: the cosine between the embeddings of who is seen, in [-1, 1]; higher is better."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


def mean_distance(a: Float[Tensor, "B P"], b: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """AED of expression codes and APD of pose parameters: the mean absolute difference (L1) over them.

    The paper does not say which distance it means, nor of which codes, so this is our choice. Lower is better; numbers
    compare only between runs of one tracker.
    """
    return (a.double() - b.double()).abs().mean(-1)


def akd(a: Float[Tensor, "B L 2"], b: Float[Tensor, "B L 2"]) -> Float[Tensor, " B"]:
    """AKD: the mean Euclidean distance (L2) of keypoints in pixels, over those found in both; lower is better."""
    return (a.double() - b.double()).norm(dim=-1).nanmean(-1)


def offered() -> dict[str, EntryPoint]:
    """The entry points that are installed, by name; loads nothing.

    Raises SpatialAvatarError when two packages offer the same one.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        if point.name not in METRICS_OF:
            raise SpatialAvatarError(
                f"{_package(point)}: offers an entry point {GROUP}: {point.name}; there are {', '.join(METRICS_OF)}"
            )
        if point.name in found:
            raise SpatialAvatarError(
                f"{_package(found[point.name])} and {_package(point)} both offer {GROUP}: {point.name}; uninstall one"
            )
        found[point.name] = point
    return found


def offered_names() -> dict[str, str]:
    """Which package, in what version, offers each estimator."""
    return {name: _package(point) for name, point in offered().items()}


def find_estimators(device: torch.device | str = "cpu") -> Estimators:
    """The installed estimators on a device. Raises SpatialAvatarError for one that cannot be loaded."""
    points = offered()
    made: dict[str, Any] = {}
    for name, point in points.items():
        try:
            made[name] = point.load()(torch.device(device))
        except Exception as e:  # another's code
            raise SpatialAvatarError(
                f"{_package(point)}: its {name} estimator ({point.value}) cannot be loaded ({in_short(e)}); repair the "
                "package, or uninstall it to leave its metrics out"
            ) from None
    return Estimators(**made, names={name: _package(point) for name, point in points.items()})


def require_estimators(names: Mapping[str, str], device: torch.device | str = "cpu") -> Estimators:
    """Those that the evaluation was started with, on a device of any machine.

    Raises SpatialAvatarError for one that cannot be loaded, and where others are installed.
    """
    if (here := offered_names()) != dict(names):
        raise SpatialAvatarError(
            f"the machines have different estimators ({here}, where the evaluation was started {dict(names)}); install "
            "the same on all"
        )
    return find_estimators(device)


def reasons(names: Mapping[str, str], lpips: bool) -> dict[str, str]:
    """Why metrics are missing, by metric: ``names`` are those of the installed estimators."""
    found = {} if lpips else {"lpips": "no AlexNet weights ('spatialavatar doctor' says where they are looked for)"}
    for name, metrics in METRICS_OF.items():
        if name not in names:
            why = f"no {name} estimator installed; a package that offers the entry point {GROUP}: {name} gives it"
            found |= dict.fromkeys(metrics, why)
    return found


def _package(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _checked(value: Any, shape: tuple[int | None, ...], name: str) -> Tensor:
    """What an estimator answered, on the CPU."""
    fits = isinstance(value, Tensor) and value.ndim == len(shape)
    if not fits or any(wanted not in (None, size) for size, wanted in zip(value.shape, shape)):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        expected = " ".join("*" if size is None else str(size) for size in shape)
        raise SpatialAvatarError(f"the {name} estimator answered {got}, expected [{expected}]; use another version")
    return value.detach().cpu()
