"""The picture of a sweep: held-out PSNR of each trial by step, and PSNR of the trained variants."""

import io
from collections.abc import Mapping, Sequence
from typing import Any


def draw(curves: Mapping[str, Sequence[tuple[int, float]]], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG. ``curves`` are step and held-out PSNR by trial, ``rows`` those of the table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(curves)
    figure = Figure(figsize=(12, max(4.0, 0.35 * len(names) + 2)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colors = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for name, curve in curves.items():
        style = "-" if names.index(name) < 10 else "--"
        left.plot(*zip(*curve), style, marker="o", markersize=3, color=colors[name], label=name) if curve else None
    left.set(xlabel="step", ylabel="held-out PSNR (dB)", title="during training")
    left.grid(alpha=0.3)
    if any(curves.values()):
        left.legend(fontsize="small")

    for at, row in enumerate(rows):
        for key, marker, filled in (("psnr", "o", True), ("paper.psnr", "D", False)):
            value = row.get(key)
            if value is None:
                continue
            color = colors[row["variant"]]
            right.plot(value, at, marker, color=color, markerfacecolor=color if filled else "none")
            right.annotate(f"{value:.2f}", (value, at), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        if row.get("psnr") is None:
            shown = row.get("note", "")
            right.annotate(shown, (0.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="0.4")
    right.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.margins(x=0.15)
    right.set(xlabel="PSNR (dB)", title=_title(rows))
    right.grid(alpha=0.3)
    out = io.BytesIO()
    canvas.print_png(out)
    return out.getvalue()


def _title(rows: Sequence[Mapping[str, Any]]) -> str:
    return "evaluated" + (" (open: the paper)" if any("paper.psnr" in row for row in rows) else "")
