"""What is left of a server under a flood: edits a minute, every answer, memory, and what bad requests get meanwhile.

    python bench/flood.py mini --minutes 10

The clients of wrk (apt-get install wrk) ask a `mrc-serve` of their own, again as soon as they are answered: first as
many clients as may wait, so that none is refused; then four times as many, the flood; then the first number again.
During the flood `bench.attacks` sends requests that must not hurt a server. On a machine that does other work too, look
at the server's own CPU seconds for each edit rather than at edits a minute.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mrc_edit.bench.attacks import ATTACKS, Outcome, attack
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.memory import memory_bytes, processor_seconds
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, add_output_options, table, write_report
from mrc_edit.bench.serving import request_body, serving
from mrc_edit.core.errors import MRCError, run_command

Row = dict[str, Any]
FLOOD = 4  # times as many as may wait
QUIET = 0.2  # of the flood's time, before it and after it
READ_SECONDS = 3  # within which a request must have come
LEAST = 0.8  # of the quiet throughput
FLAT = 1.05  # memory at the end of the flood, of that at its start
SCRIPT = """
wrk.method = "POST"
wrk.path = "/v1/images/edits"
wrk.headers["Content-Type"] = "application/json"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  wrk.body = io.open(args[1], "rb"):read("*a")
  statuses = {}
end
function response(status) statuses[status] = (statuses[status] or 0) + 1 end
function done(summary)
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do print("status", status, count) end
  end
  local errors = summary.errors
  print("failed", errors.connect + errors.read + errors.write + errors.timeout)
end
"""
LOADS = [
    Column("clients", "{clients}"),
    Column("seconds", "{seconds:.0f}"),
    Column("edits a minute", "{edits:.1f}"),
    Column("CPU an edit", "{cpu:.2f} s"),
    Column("refused (429)", "{refused}"),
    Column("other answers", "{other}"),
    Column("memory at start → end", "{memory_start:.0f} → {memory_end:.0f} MB", scale=1e-6),
]
BAD = [
    Column("beside the flood", "{name}"),
    Column("answers", "{answers}"),
    Column("slowest", "{slowest:.1f} s"),
    Column("as it should be", "{right}"),
]


def asked(address: str, body: Path, script: Path, clients: int, seconds: float) -> Counter[str]:
    """Answers by status in that time; "failed" counts connections that got none."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "600s", "-s", str(script)]
    done = subprocess.run([*command, f"http://{address}", "--", str(body)], capture_output=True, text=True, check=False)
    found = re.findall(r"^(?:status\s+)?(\d+|failed)\s+(\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise MRCError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return Counter({status: int(count) for status, count in found if int(count)})


class Sampler(threading.Thread):
    """Takes the memory of a process once a second, in a `with`."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.samples, self.ended = process, [memory_bytes("VmRSS", process)], threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1):
            self.samples.append(memory_bytes("VmRSS", self.process))

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def ends(self) -> tuple[float, float]:
        """The greatest value of the first tenth, but for the first seconds, and of the last."""
        tenth = max(1, len(self.samples) // 10)
        return max(self.samples[: tenth + 5]), max(self.samples[-tenth:])


def load(address: str, process: int, files: tuple[Path, Path], clients: int, seconds: float) -> Row:
    """One row: wrk with so many clients for so long."""
    with Sampler(process) as sampler:
        start, cpu = time.monotonic(), processor_seconds(process)
        counts = asked(address, *files, clients, seconds)
        seconds, cpu = time.monotonic() - start, processor_seconds(process) - cpu
    first, last = sampler.ends()
    return {
        "clients": clients,
        "seconds": seconds,
        "edits": counts["200"] * 60 / seconds,
        "cpu": cpu / counts["200"] if counts["200"] else None,
        "refused": counts["429"],
        "other": ", ".join(f"{counts[name]} × {name}" for name in counts.keys() - {"200", "429"}) or None,
        "memory_start": first,
        "memory_end": last,
    }  # fmt: skip


def flooded(
    address: str, process: int, files: tuple[Path, Path], clients: int, seconds: float
) -> tuple[Row, dict[str, list[Outcome]]]:
    """The row of the flood, and what came of every attack, one after the other as long as it lasts."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ATTACKS}
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(load, address, process, files, clients, seconds)
        while not flood.done():
            for name in ATTACKS:
                if not flood.done():
                    outcomes[name].append(attack(name, address, READ_SECONDS))
        return flood.result(), outcomes


def bad_rows(outcomes: dict[str, list[Outcome]]) -> list[Row]:
    rows: list[Row] = []
    for name, found in outcomes.items():
        answers = Counter(outcome.answer for outcome in found)
        right = bool(found) and all(ATTACKS[name].is_right(outcome, READ_SECONDS) for outcome in found)
        rows.append(
            {
                "name": name,
                "answers": ", ".join(f"{count} × {answer}" for answer, count in answers.items()) or "none",
                "slowest": max((outcome.seconds for outcome in found), default=None),
                "right": "yes" if right else "no",
            }
        )
    return rows


def broken(quiet: list[Row], flood: Row, bad: list[Row]) -> list[str]:
    """What does not hold."""
    before = sum(row["edits"] for row in quiet) / len(quiet)
    faults = []
    if flood["edits"] < LEAST * before:
        faults.append(f"throughput fell to {flood['edits'] / before:.0%}")
    if flood["other"]:
        faults.append(f"other answers than 200 and 429: {flood['other']}")
    if flood["memory_end"] > FLAT * flood["memory_start"]:
        faults.append("memory grew")
    return faults + [f"{row['name']} got {row['answers']}" for row in bad if row["right"] == "no"]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("model", help="checkpoint or export folder, or mini")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of the flood (default 10)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (default 128)")
    parser.add_argument("--steps", type=int, help="denoising steps of an edit (default: the model's own)")
    parser.add_argument("--max-batch", type=int, default=8, help="the server's --max-batch (default 8)")
    parser.add_argument("--max-waiting", type=int, default=16, help="the server's --max-waiting (default 16)")
    parser.add_argument("--backend", default="auto", help="backend of the server (default auto)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, size=64, max_batch=1, max_waiting=1)
    if not 0.2 <= args.minutes <= 1440:
        raise MRCError(f"--minutes is {args.minutes:g}; give 0.2 to 1440")
    if shutil.which("wrk") is None:
        raise MRCError("wrk is not installed; apt-get install wrk")
    flags = ["--backend", args.backend, "--max-batch", str(args.max_batch), "--max-waiting", str(args.max_waiting)]
    flags += ["--read-timeout", str(READ_SECONDS)]
    clients, seconds = args.max_waiting, 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder, serving(args.model, flags) as (address, process):
        files = Path(folder, "body"), Path(folder, "script.lua")
        files[0].write_bytes(request_body(args.size, args.steps))
        files[1].write_text(SCRIPT)
        with tqdm(total=4, desc="warm-up", disable=None) as bar:
            asked(address, *files, clients, 10)
            quiet = []
            for name in ("quiet", "flood", "quiet again"):
                bar.update()
                bar.set_description(name)
                if name == "flood":
                    flood, outcomes = flooded(address, process, files, FLOOD * clients, seconds)
                else:
                    quiet.append(load(address, process, files, clients, max(10, QUIET * seconds)))
            bar.update()
    bad = bad_rows(outcomes)
    machine = describe_machine()
    rows = [quiet[0], flood, quiet[1]]
    print(table(LOADS, rows, note=f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}").markdown())
    print(table(BAD, bad).markdown())
    attacks = {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()}
    write_report(args, {"machine": machine, "rows": rows, "bad": bad, "attacks": attacks}, rows)
    if faults := broken(quiet, flood, bad):
        raise MRCError(f"the server did not stand the flood: {'; '.join(faults)}")


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
