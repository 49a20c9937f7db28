"""Numbers of a program as metrics of Ray, for Prometheus."""

from collections.abc import Mapping
from typing import Any


class Gauges:
    """``ray_spatialavatar_<kind>_<name>``, with a tag that says which one of the kind it is."""

    def __init__(self, kind: str, about: str, tag: str, value: str) -> None:
        """``about`` stands in the descriptions: '<name> of <about>'."""
        self._kind, self._about, self._tags = kind, about, {tag: value}
        self._gauges: dict[str, Any] = {}

    def set(self, values: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(
                    f"spatialavatar_{self._kind}_{name}", f"{name} of {self._about}", tag_keys=tuple(self._tags)
                )
            self._gauges[name].set(value, tags=self._tags)
