"""The precision report as one page without links: `precision.html`."""

import html
import math

from .emulate import Layer
from .precision import Cost, GraphReport, PrecisionReport

WIDTH, HEIGHT, MARGIN = 900, 160, 34  # of a chart, in pixels
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:70em}td,th{padding:2px 12px;text-align:left;vertical-align:top}"
    "svg{background:#f6f6f6}rect{fill:#47a}rect.high{fill:#c33}line{stroke:#c33}text{font:11px sans-serif}"
)


def page(report: PrecisionReport) -> str:
    """The HTML of a report: by graph what each format costs, and every layer's peak against float16's greatest."""
    graphs = "".join(section(name, graph, report) for name, graph in report.graphs.items())
    return (
        f"<!doctype html><meta charset=utf-8><title>Precision</title><style>{STYLE}</style><h1>Precision</h1>"
        f"<p>Measured on {report.edits} edits of {html.escape(report.pictures)} at {report.size} pixels at most. "
        "Errors are relative, of the graph's first output against float32; formats are emulated. Layers are kept in "
        f"float32 until the rest errs by at most {report.bound:.0%}; in float16 also those whose peak comes within a "
        f"factor of {report.margin:g} of {report.largest:.0f}.</p>{graphs}"
    )


def section(name: str, graph: GraphReport, report: PrecisionReport) -> str:
    rows = "".join(row(number, cost, len(graph.layers)) for number, cost in graph.formats.items())
    peak = max(graph.layers, key=lambda layer: layer.peak)
    return (
        f"<h2>{html.escape(name)}</h2><table><tr><th>format<th>error<th>error with wider layers<th>wider layers{rows}"
        f"</table><p>The greatest magnitude is {peak.peak:.3g}, in {html.escape(peak.name)}. Every bar is a layer, in "
        f"the graph's order:</p>{chart(graph.layers, report)}"
    )


def row(number: str, cost: Cost, layers: int) -> str:
    names = "".join(f"<br>{html.escape(name)}" for name in cost.wider)
    wider = f"<details><summary>{len(cost.wider)} of {layers}</summary>{names}</details>" if names else "none"
    return f"<tr><td>{number}<td>{shown(cost.error)}<td>{shown(cost.remaining)}<td>{wider}"


def shown(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.2%}"


def chart(layers: list[Layer], report: PrecisionReport) -> str:
    """Peaks on a logarithmic scale from 0.01 to float16's greatest number, which is the upper line."""
    low, high = math.log10(0.01), math.log10(report.largest)
    step = WIDTH / len(layers)

    def height(peak: float) -> float:
        return HEIGHT * (min(max(math.log10(max(peak, 1e-9)), low), high) - low) / (high - low)

    bars = "".join(
        f"<rect{' class=high' if not layer.peak * report.margin <= report.largest else ''} x={i * step:.1f} "
        f"y={MARGIN + HEIGHT - height(layer.peak):.1f} width={step * 0.8:.2f} height={height(layer.peak):.1f}>"
        f"<title>{html.escape(layer.name)}: {layer.peak:.3g}</title></rect>"
        for i, layer in enumerate(layers)
    )
    near = MARGIN + HEIGHT - height(report.largest / report.margin)
    return (
        f"<svg width={WIDTH} height={MARGIN + HEIGHT}><line x1=0 x2={WIDTH} y1={MARGIN} y2={MARGIN} />"
        f"<text x=4 y={MARGIN - 4}>{report.largest:.0f}, float16's greatest number</text>"
        f'<line x1=0 x2={WIDTH} y1={near:.1f} y2={near:.1f} stroke-dasharray="4" />{bars}</svg>'
    )
