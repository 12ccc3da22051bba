"""What a server adds to an edit: seconds of requests less the seconds of their edits and of their wait in the queue.

    python bench/serving.py mini --concurrency 1,8 --edits 200

A `mrc-serve` of its own is asked over HTTP. Each reply says how long its edit took, phase by phase, and how long it
waited for its batch. `Engine.edit` also takes some time outside of its phases (reading the image, checks, noise), which
is measured without a server. The rest of what the client waited is what the server added: parsing, threads, encoding,
sending, and the client's own work. It is taken request by request, so that a slow edit does not count as the server's.
"""

import argparse
import base64
import http.client
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least, whole_numbers
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.workload import INSTRUCTION, photograph
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.engine import Engine

ALONE = 30  # edits without a server
COLUMNS = [
    Column("at once", "{concurrency}"),
    Column("edits", "{edits}"),
    Column("request p50", "{request_p50:.1f} ms", scale=1e3),
    Column("edit p50", "{edit_p50:.1f} ms", scale=1e3),
    Column("waited p50", "{waited_p50:.1f} ms", scale=1e3),
    Column("added p50", "{added_p50:.1f} ms", scale=1e3),
    Column("added p99", "{added_p99:.1f} ms", scale=1e3),
]


@contextmanager
def serving(model: str, flags: list[str]) -> Iterator[tuple[str, int]]:
    """Host and port of a server on `model`, in a process of its own, and the number of that process."""
    command = [sys.executable, "-m", "mrc_edit.serve.command", model, "--port", "0", *flags]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MRC_API_KEYS")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if " at http://" not in first:
            raise MRCError("the server did not start; its error is above")
        with ThreadPoolExecutor(1) as reader:
            reader.submit(process.stdout.read)  # its log would fill the pipe
            try:
                yield urlsplit(first.split()[-1]).netloc, process.pid
            finally:
                process.terminate()


def jpeg(size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(size)).save(file, "JPEG")
    return file.getvalue()


def outside_phases(args: argparse.Namespace) -> float:
    """Median seconds of `Engine.edit` that are in none of the phases that it times."""
    engine, image, rest = Engine.from_pretrained(args.model, args.backend), jpeg(args.size), []
    for _ in range(ALONE):
        start = time.perf_counter()
        result = engine.edit(image, INSTRUCTION, resolution=args.size, num_inference_steps=args.steps)
        rest.append(time.perf_counter() - start - sum(result.timings.values()))
    return median(rest)


def request_body(size: int, steps: int | None) -> bytes:
    """An edit in JSON."""
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg(size)).decode()
    fields = {"prompt": INSTRUCTION, "images": [{"image_url": url}], "resolution": size}
    return json.dumps(fields | ({} if steps is None else {"num_inference_steps": steps})).encode()


def timed_requests(address: str, body: bytes, count: int) -> list[tuple[float, float, float]]:
    """Seconds of requests one after the other, of their edits, and of their wait."""
    connection = http.client.HTTPConnection(address)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        connection.request("POST", "/v1/images/edits", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        seconds = time.perf_counter() - start
        if response.status != 200:
            raise MRCError(f"the server answered {response.status}: {data.decode()}")
        (edit,) = json.loads(data)["data"]
        times.append((seconds, sum(edit["timings"].values()), edit["waited"]))
    connection.close()
    return times


def measure(address: str, body: bytes, concurrency: int, edits: int, outside: float) -> Row:
    """One row: percentiles over all requests, in seconds; `outside` is of `outside_phases`."""
    with ThreadPoolExecutor(concurrency) as clients:
        each = [clients.submit(timed_requests, address, body, -(-edits // concurrency)) for _ in range(concurrency)]
        requests, own, waited = np.array([times for client in each for times in client.result()]).T
    own += outside
    added = requests - own - waited
    return {
        "concurrency": concurrency,
        "edits": len(requests),
        "request_p50": float(np.median(requests)),
        "edit_p50": float(np.median(own)),
        "waited_p50": float(np.median(waited)),
        "added_p50": float(np.median(added)),
        "added_p99": float(np.percentile(added, 99)),
    }


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("model", help="checkpoint or export folder, or mini")
    parser.add_argument("--concurrency", default="1,8", help="clients at once, separated by commas (default 1,8)")
    parser.add_argument("--edits", type=int, default=200, help="timed edits of each case (default 200)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (default 128)")
    parser.add_argument("--steps", type=int, help="denoising steps of an edit (default: the model's own)")
    parser.add_argument("--backend", default="auto", help="backend of the server (default auto)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, edits=1, size=64)
    cases = whole_numbers(args.concurrency, "--concurrency")
    body = request_body(args.size, args.steps)
    flags = ["--backend", args.backend, "--max-waiting", str(max(64, *cases))]
    outside = outside_phases(args)
    with serving(args.model, flags) as (address, _):
        for concurrency in cases:
            # the first edit of a batch of a size compiles
            measure(address, body, concurrency, 2 * concurrency, outside)
        rows = [measure(address, body, concurrency, args.edits, outside) for concurrency in cases]
    machine = describe_machine()
    print(table(COLUMNS, rows, note=f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}").markdown())
    write_report(args, {"machine": machine, "outside_phases": outside, "rows": rows}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
