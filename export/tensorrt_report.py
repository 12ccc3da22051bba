"""The report of a build of TensorRT engines, `tensorrt/report.json` and `report.html`."""

import html
import json
import re
from pathlib import Path
from typing import Any

from .tensorrt import FOLDER, Toolkit

NUMBER = re.compile(r"[\d.]+( \w+| ×)?")  # and its unit
STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #8884}"
    "td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
)


def write_report(folder: Path, tools: Toolkit, versions: dict[str, str], engines: list[dict[str, Any]]) -> None:
    """Write both files into `folder/tensorrt`.

    Args:
        versions: of the tools; engines: what `build_engine` says of each, and the bytes of its ONNX files.
    """
    report = {
        "flavour": tools.flavour,
        "version": tools.version,
        "targets": list(tools.targets),
        "versions": versions,
        "engines": engines,
    }
    (folder / FOLDER / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / FOLDER / "report.html").write_text(page(report))


def page(report: dict[str, Any]) -> str:
    """The report for people, in one file that loads no other."""
    head = [
        "graph",
        "precision",
        "engine",
        "of the ONNX files",
        "parse",
        "build",
        "peak memory",
        "layers",
        "most frequent",
    ]
    rows = [engine_row(engine) for engine in report["engines"]]
    total = sum(engine["parse_seconds"] + engine["build_seconds"] for engine in report["engines"])
    title = f"{report['flavour']} {report['version']} for {', '.join(report['targets'])}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>TensorRT engines</title><style>{STYLE}</style>"
        f"<h1>TensorRT engines</h1><p>{html.escape(title)}. All in {total:.1f} s.</p>"
        f"{table(head, rows)}<h2>Shapes</h2><p>Least … best … greatest. The tight profile takes one shape.</p>"
        f"{''.join(shapes(engine) for engine in report['engines'])}"
        f"<h2>Versions</h2><p>{html.escape(versions)}</p></html>\n"
    )


def engine_row(engine: dict[str, Any]) -> list[str]:
    layers = engine["layers"]
    frequent = sorted(layers, key=lambda kind: -layers[kind])[:4]
    return [
        engine["graph"],
        engine["precision"],
        f"{engine['engine_bytes'] / 1e6:.1f} MB",
        f"{engine['engine_bytes'] / engine['weight_bytes']:.2f} ×",
        f"{engine['parse_seconds']:.1f} s",
        f"{engine['build_seconds']:.1f} s",
        f"{engine['peak_memory_bytes'] / 1e9:.2f} GB",
        str(sum(layers.values())),
        ", ".join(f"{layers[kind]} {kind}" for kind in frequent),
    ]


def shapes(engine: dict[str, Any]) -> str:
    """The profiles of one engine: least to greatest shape, and the best one between."""
    names = ["tight", "wide"] if len(engine["profiles"]) == 2 else ["wide"]
    rows = [[name, *(span(profile[name]) for profile in engine["profiles"])] for name in engine["profiles"][0]]
    return f"<h3>{html.escape(engine['graph'])}</h3>{table(['input', *names], rows)}"


def span(bounds: dict[str, list[int]]) -> str:
    least, best, greatest = ("×".join(map(str, bounds[key])) for key in ("min", "opt", "max"))
    return best if least == greatest else f"{least} … {best} … {greatest}"


def table(head: list[str], rows: list[list[str]]) -> str:
    def cell(text: str) -> str:
        return f"<td{' class=n' if NUMBER.fullmatch(text) else ''}>{html.escape(text)}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>{body}</table>"
