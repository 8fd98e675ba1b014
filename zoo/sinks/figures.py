"""The figure of a report: norms, levels, attention by layer and place, attention by layer and head."""

import math
from pathlib import Path
from typing import Any

from zoo.io import atomic_path
from zoo.sinks.report import SinkReport

_COLORS = {"primary": "C3", "secondary": "C0", "noise": "0.6", "aligned_only": "C1", "opposed": "C4"}
_SHOWN = 12  # sinks of a kind whose norms are drawn


def save_figure(path: str | Path, report: SinkReport, title: str = "") -> None:
    """Draws a report as PNG.

    Four parts: the norm of every sink over the layers beside the median token's; how many sinks have each
    (first layer, lifetime), as in the paper's second figure; the largest attention of a head for each layer
    and place of the first sequence; and how much of each head's attention the primary sinks get.

    Args:
        path: The file to make.
        report: What to draw.
        title: Written above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    norms, levels, places, heads = figure.subplots(2, 2).flat
    _norms(norms, report)
    _levels(levels, report)
    if "attention" in report.maps:
        _places(figure, places, report)
        _heads(figure, heads, report)
    else:
        for axes in (places, heads):
            axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _norms(axes: Any, report: SinkReport) -> None:
    layers = range(-1, report.layers)  # the embedding first
    axes.plot(layers, report.curves["median_norm"], color="k", linewidth=2, label="median token")
    for kind in _COLORS:
        for number, sink in enumerate(report.of_kind(kind)[:_SHOWN]):
            axes.plot(layers, sink.curve, color=_COLORS[kind], linewidth=1, label=None if number else kind)
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="layer (-1: embedding)", ylabel="norm of the state", title="Norms")
    axes.legend(fontsize="small")


def _levels(axes: Any, report: SinkReport) -> None:
    axes.set(xlabel="first layer", ylabel="lifetime in layers", title="Sink levels (area: sinks)")
    axes.set_xlim(-1.5, report.layers - 0.5)
    axes.set_ylim(0, report.layers + 1.5)
    for kind, color in _COLORS.items():
        counts: dict[tuple[int, int], int] = {}
        for sink in report.of_kind(kind):
            counts[sink.start, sink.lifetime] = counts.get((sink.start, sink.lifetime), 0) + 1
        if counts:
            x, y = zip(*counts, strict=True)
            sizes = [40 * (1 + math.log(count)) for count in counts.values()]
            axes.scatter(x, y, s=sizes, color=color, alpha=0.8, label=f"{kind} ({sum(counts.values())})")
    if report.sinks:
        axes.legend(fontsize="small", loc="upper right")
    else:
        axes.text(0.5, 0.5, "no sinks", transform=axes.transAxes, ha="center")


def _places(figure: Any, axes: Any, report: SinkReport) -> None:
    image = _image(axes, report.maps["attention"], report)
    axes.set(xlabel="place in the first sequence", ylabel="attention layer", title="Largest score of a head")
    figure.colorbar(image, ax=axes)


def _heads(figure: Any, axes: Any, report: SinkReport) -> None:
    image = _image(axes, report.maps["heads"], report)
    axes.set(xlabel="head", ylabel="attention layer", title="Attention on primary sinks")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes)


def _image(axes: Any, values: Any, report: SinkReport) -> Any:
    layers = [int(layer) for layer in report.curves["attention_layer"]]
    image = axes.imshow(
        values.numpy(), aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
    )
    step = max(1, len(layers) // 12)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    return image
