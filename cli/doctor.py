"""`mrc doctor`: what works here, and what installs the rest."""

import json
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from ..bench.machine import package_versions
from ..core.child import ask
from ..core.console import command_parser
from ..core.errors import MRCError, run_command
from ..engine.backends import BACKENDS, state_of
from ..kernels.native import LIBRARY, find, library
from .machine import describe_machine, lacking

MOST_DIFFERENT = 0.1  # of a value in 0…1 of two backends' edits, 16 pixels a side


def examine() -> dict[str, Any]:
    """Machine, versions, and what of each backend, provider, kernel and extra is here and works.

    States are "works", "fails", "missing" and "no GPU".
    """
    machine = describe_machine()
    backends = {}
    with tqdm(BACKENDS, desc="self-test", unit="backend", leave=False, disable=None) as names:
        for name in names:
            backends[name] = examine_backend(name, bool(machine["gpus"]))
    compare(backends)
    providers = backends["onnxruntime"].pop("providers", {})
    report = {
        "machine": machine,
        "versions": package_versions(),
        "backends": backends,
        "providers": providers,
        "kernels": examine_kernels(),
        "extras": lacking(),
    }
    states = [report["kernels"]["state"], *(entry["state"] for entry in backends.values())]
    return report | {"works": "fails" not in states}


def examine_backend(name: str, gpu: bool) -> dict[str, Any]:
    """State of a backend, why, and for one that edits its seconds, precision and edit."""
    if (state := state_of(name)) != "available":
        return {"state": "missing", "why": state}
    if name == "tensorrt" and not gpu:
        return {"state": "no GPU", "why": "it is installed, and needs an NVIDIA GPU with its driver"}
    try:
        answer = ask("mrc_edit.cli.self_test", {"backend": name}, "its self-test broke off")
    except MRCError as error:
        return {"state": "fails", "why": str(error)}
    if "error" in answer:
        return answer | {"state": "fails", "why": answer.pop("error")}
    return answer | {"state": "works"}


def compare(backends: dict[str, dict[str, Any]]) -> None:
    """Fail backends whose edit differs from that of the first one that edits; edits leave the report."""
    edits = {name: np.array(entry.pop("edit")) for name, entry in backends.items() if "edit" in entry}
    for name, edit in edits.items():
        first = next(iter(edits))
        difference = float(abs(edit - edits[first]).max())
        if not difference <= MOST_DIFFERENT:
            backends[name] |= {"state": "fails", "why": f"its edit differs from that of {first} by {difference:.2f}"}


def examine_kernels() -> dict[str, str]:
    """State of the native library, which the backend `torch` uses on a CPU."""
    if find(LIBRARY) is None:
        return {"state": "missing", "why": "install a C++ compiler (g++ or clang), and this package again"}
    try:
        library()
    except MRCError as error:
        return {"state": "fails", "why": str(error)}
    return {"state": "works"}


def text_of(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, gigabytes = report["machine"], {k: f"{v / 1e9:.1f} GB" for k, v in report["machine"]["memory"].items()}
    free = f", {gigabytes['free']} free" if "free" in gigabytes else ""
    sections: dict[str, dict[str, str]] = {
        "machine": {
            "cpu": f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores",
            "instructions": " ".join(machine["features"]) or "unknown",
            "memory": gigabytes["total"] + free,
            "gpus": "; ".join(machine["gpus"]) or "none that nvidia-smi lists",
            "system": f"{machine['system']}, Python {machine['python']}",
        },
        "versions": report["versions"],
        "backends": {name: line(entry) for name, entry in report["backends"].items()},
        "providers of ONNX Runtime": {name: needs or "here" for name, needs in report["providers"].items()},
        "kernels": {"native": line(report["kernels"])},
        "extras": {
            name: f"pip install 'mrc-edit[{name}]' brings {', '.join(missing)}" if missing else "complete"
            for name, missing in report["extras"].items()
        },
    }
    parts = []
    for title, entries in sections.items():
        width = max(map(len, entries), default=0)
        parts += ["", title, *(f"  {name:{width}}  {text}" for name, text in entries.items())]
    last = "all that is installed works" if report["works"] else "something that is installed does not work"
    return "\n".join([*parts[1:], "", last])


def line(entry: dict[str, Any]) -> str:
    edited = f"edited mini's photograph in {entry['seconds']:.1f} s, {entry['precision']}" if "seconds" in entry else ""
    return ": ".join(filter(None, [entry["state"], entry.get("why", edited)]))


def main() -> None:
    parser = command_parser("mrc doctor", "Say what works on this machine, and what installs the rest.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON (default: no)")
    args = parser.parse_args()
    report: dict[str, Any] = {}

    def run() -> None:
        report.update(examine())
        print(json.dumps(report) if args.json else text_of(report))

    sys.exit(run_command(run) or int(not report["works"]))
