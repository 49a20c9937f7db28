"""Curves over steps as a drawing (SVG), the same bytes for the same numbers."""

import io
import math
from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[float, float]]  # step and value


def draw(panels: Mapping[str, Mapping[str, Curve]], xlabel: str = "step", logarithmic: Sequence[str] = ()) -> bytes:
    """Panels side by side: the title of each, and its curves by name.

    ``logarithmic`` names panels with such an axis, on which what is not positive is left out.

    Raises ValueError without a panel.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.hashsalt": "spatialavatar", "font.size": 9}):
        figure = Figure(figsize=(4.4 * len(panels), 3.1), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
        for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            for name, curve in curves.items():
                color = f"C{names.index(name) % 10 if len(curves) > 1 else 0}"
                marker = "o" if len(curve) < 40 else None
                shown = [(step, value if value > 0 or title not in logarithmic else math.nan) for step, value in curve]
                axes.plot(*zip(*shown), "-", marker=marker, markersize=3, color=color, label=name)
            axes.set(title=title, xlabel=xlabel, yscale="log" if title in logarithmic else "linear")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if len(curves) > 1:
                axes.legend(fontsize="small")
        out = io.StringIO()
        canvas.print_svg(out, metadata={"Date": None})
    return out.getvalue().encode()
