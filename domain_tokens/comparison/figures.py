"""The report's figures, as SVG that takes its ink and its paper from the page around it."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from domain_tokens.errors import UserError

ARM_COLOURS = {"baseline": "#0072b2", "mul_tokens": "#d55e00"}  # Okabe and Ito 2008
OTHER_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7b6cd9", "#999933")
INK, FAINT = "#010203", "#8a8b8c"  # replaced by variables of the page
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    ARM_COLOURS["baseline"]: "var(--baseline)",
    ARM_COLOURS["mul_tokens"]: "var(--mul)",
}
STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{f"{key}color": INK for key in ("text.", "axes.label", "xtick.", "ytick.", "axes.title")},
    "axes.edgecolor": FAINT,
    "legend.frameon": False,
}

Curve = Sequence[tuple[float, float]]  # (x, y)


def _svg(figure: Any, name: str, label: str) -> str:
    import matplotlib
    from matplotlib import pyplot

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    # Ids must differ from those of the other figures on the page.
    text = text.replace('id="', f'id="{name}-').replace('"#', f'"#{name}-')
    text = text.replace("url(#", f"url(#{name}-")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _pyplot() -> Any:
    """Return matplotlib's pyplot for files; UserError where it finds no folder for its caches."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except OSError as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"the figures cannot be drawn: {words}; set MPLCONFIGDIR to a folder that can be "
            "written, or leave --report out"
        ) from None
    return pyplot


def _figure(columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    pyplot = _pyplot()

    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(1, columns, figsize=size, squeeze=False)
    return figure, axes[0]


def draw_learning_curves(stages: dict[str, dict[str, list[Curve]]]) -> str:
    """Draw the training loss over steps; stages: title -> arm -> a curve per seed."""
    figure, axes = _figure(len(stages), size=(4.6 * len(stages), 3.1))
    for axis, (title, arms) in zip(axes, stages.items(), strict=True):
        for index, (arm, curves) in enumerate(arms.items()):
            colour = colour_of(arm, index)
            for number, curve in enumerate(curves):
                x, y = zip(*curve, strict=True)
                label = arm if number == 0 else None
                axis.plot(x, y, color=colour, lw=1.4, alpha=0.8, label=label)
        axis.set(title=title, xlabel="optimizer step", ylabel="training loss, nats per token")
        axis.legend()
    return _svg(figure, "curves", "Training loss of both arms in each stage")


def colour_of(arm: str, index: int) -> str:
    """Return the colour of an arm; index: its position among the arms."""
    known = {**ARM_COLOURS, "fact_token": ARM_COLOURS["mul_tokens"]}
    return known.get(arm, OTHER_COLOURS[index % len(OTHER_COLOURS)])


def draw_forest(panels: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Draw contrasts as points with their intervals; panels: title -> rows, the first on top.

    A row has label, delta, interval (or None) and primary, in the units that the title names.
    """
    longest = max(len(rows) for rows in panels.values())
    size = (5.6 * len(panels) + 1.6, 1.2 + 0.42 * longest)
    figure, axes = _figure(len(panels), size=size)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color=FAINT, lw=1)
        for height, row in enumerate(rows):
            colour = ARM_COLOURS["mul_tokens"] if row["primary"] else INK
            if row["interval"] is not None:
                axis.plot(row["interval"], [height] * 2, color=colour, lw=1.6)
            marker = "D" if row["primary"] else "o"
            axis.plot([row["delta"]], [height], marker, color=colour, ms=5)
        axis.set(xlabel=title, yticks=range(len(rows)), ylim=(longest - 0.5, -0.5))
        axis.set_yticklabels([row["label"] for row in rows])
    figure.subplots_adjust(wspace=0.6)
    return _svg(figure, "forest", "Contrasts between arms with their intervals")


def draw_heatmaps(
    grids: dict[str, list[list[float]]],
    *,
    unit: str,
    change_title: str = "mul_tokens − baseline",
    name: str = "heatmaps",
) -> str:
    """Draw two 9 × 9 grids on one scale, and second − first; rows are the first factor.

    grids: title -> values; a darker cell is a higher value.
    """
    import numpy as np

    arms = {arm: np.array(grid, dtype=float) for arm, grid in grids.items()}
    first, second = arms.values()
    change = second - first
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    reach = max(float(np.abs(change).max()), 1e-9)
    figure, axes = _figure(3, size=(13, 4.2))
    panels = [(arm, grid, "cividis", low, max(high, low + 1e-9)) for arm, grid in arms.items()]
    panels.append((change_title, change, "PuOr", -reach, reach))
    for axis, (title, grid, colours, vmin, vmax) in zip(axes, panels, strict=True):
        mesh = axis.pcolormesh(
            np.arange(0.5, 10), np.arange(0.5, 10), grid, cmap=colours, vmin=vmin, vmax=vmax
        )
        for (row, column), value in np.ndenumerate(grid):
            red, green, blue, _ = mesh.cmap(mesh.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axis.text(
                column + 1,
                row + 1,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="#ffffff" if dark else "#000000",
            )
        axis.set(title=title, xlabel="times", xticks=range(1, 10), yticks=range(1, 10))
        axis.invert_yaxis()
        axis.set_aspect("equal")
        if axis is not axes[0]:  # both arms share one scale
            figure.colorbar(mesh, ax=axis, shrink=0.8, label=unit)
    return _svg(figure, name, f"The multiplication table, cell by cell: {', '.join(grids)}")


def draw_scatter(points: Sequence[tuple[float, float, bool]], *, unit: str) -> str:
    """Draw items: (baseline, mul_tokens, whether a fact applies to the item)."""
    figure, (axis,) = _figure(1, size=(4.8, 4.6))
    finite = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    low = min(min(p[:2]) for p in finite)
    high = max(max(p[:2]) for p in finite)
    axis.plot([low, high], [low, high], color=FAINT, lw=1)
    for applies, colour, marker, label in (
        (False, "#56B4E9", "o", "no fact in the gold solution"),
        (True, "#E69F00", "^", "a fact in the gold solution"),
    ):
        chosen = [p[:2] for p in finite if p[2] is applies]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axis.scatter(x, y, s=12, alpha=0.6, color=colour, marker=marker, label=label, lw=0)
    axis.set(xlabel=f"baseline, {unit}", ylabel=f"mul_tokens, {unit}")
    axis.set_aspect("equal")
    axis.legend(loc="upper left", fontsize=8)
    return _svg(figure, "scatter", "Log-probability of the gold answer per item in both arms")
