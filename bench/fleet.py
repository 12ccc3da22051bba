"""What a fleet of replicas does under 10, 1,000 and 100,000 edits a minute, and what gives first; by simulation.

    python bench/fleet.py costs.json --measure mini          # measure on this machine, then simulate
    python bench/fleet.py costs.json --plot fleet.png        # simulate with what was measured
    python bench/fleet.py costs.json --against-ray mini      # measure, and hold the simulation against a real fleet

The fleet is that of `mrc-serve --ray`: a server with a bounded queue, and replicas that edit in batches. Each rate is
simulated for one server with all replicas, and for as many servers as it takes, each with its share of them.
"""

import argparse
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from mrc_edit.bench.fleet_check import COLUMNS as HELD
from mrc_edit.bench.fleet_check import compare, under_load
from mrc_edit.bench.fleet_model import Costs, Fleet, Outcome, check
from mrc_edit.bench.fleet_run import measure, replay, running
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least, whole_numbers
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.serving import request_body
from mrc_edit.bench.simulation import Simulation
from mrc_edit.bench.traffic import Traffic, arrivals
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.figures import new_figure, write_figure
from mrc_edit.core.files import read_record, write_json

LOAD = 0.7  # of replicas and servers, for which they are counted
COLUMNS = [
    Column("edits a minute", "{rate:,.0f}"),
    Column("servers", "{servers}"),
    Column("replicas", "{replicas:,}"),
    Column("p50", "{p50:.2f} s"),
    Column("p99", "{p99:.2f} s"),
    Column("batch", "{batch:.1f}"),
    Column("busy", "{utilization:.0f} %", scale=100),
    Column("refused", "{refused:.1f} %", scale=100),
    Column("server", "{server_load:.0f} %", scale=100),
    Column("network", "{network_load:.1f} %", scale=100),
    Column("memory", "{memory_load:.1f} %", scale=100),
    Column("queue covers", "{covers:.1f} s"),
    Column("gives first", "{first}"),
]


def batch_seconds(costs: Costs, traffic: Traffic, batch: int) -> float:
    """Mean seconds of a batch, over the sizes that are asked for."""
    means = {each.size: fmean(each.seconds) for each in costs.service if each.batch == batch}
    return sum(share * means[size] for size, share in traffic.sizes.items()) / sum(traffic.sizes.values())


def planned(costs: Costs, traffic: Traffic, servers: int, args: argparse.Namespace) -> Fleet:
    """One server's part of the replicas for which full batches take `LOAD` of their time; two at least in all."""
    fleet = fleet_of(args, 1)
    needed = traffic.rate * batch_seconds(costs, traffic, fleet.max_batch) / fleet.max_batch / LOAD
    most = math.ceil(max(2, needed) / servers)
    return replace(fleet, replicas=(max(1, math.ceil(most * args.always)), most))


def loads(
    costs: Costs, traffic: Traffic, fleet: Fleet, outcome: Outcome, link: float, memory: float
) -> dict[str, float]:
    """How much of what each part of one server's fleet can do is asked of it; what is above 1 gives."""
    edit = batch_seconds(costs, traffic, fleet.max_batch) / fleet.max_batch
    return {
        "replicas": traffic.rate * edit / fleet.replicas[1],
        "server": traffic.rate * costs.ingress,
        "network": traffic.rate * max(costs.bytes_in, costs.bytes_out) * 8 / link,
        "memory": outcome.held * (costs.bytes_in + costs.bytes_out) / memory,
    }


def row(costs: Costs, traffic: Traffic, servers: int, args: argparse.Namespace) -> Row:
    """One rate with so many servers: what one of them and its replicas do."""
    each = replace(traffic, rate=traffic.rate / servers)
    own = planned(costs, traffic, servers, args)
    outcome = Simulation(costs, own, args.seed).run(arrivals(each, args.edits / each.rate, args.seed))
    shares = loads(costs, each, own, outcome, args.link * 1e9, args.memory * 1e9)
    total = outcome.done + outcome.refused + outcome.cancelled + outcome.failed
    return {
        "rate": round(traffic.rate * 60),
        "servers": servers,
        "replicas": own.replicas[1] * servers,
        "p50": outcome.percentile(50),
        "p99": outcome.percentile(99),
        "batch": fmean(outcome.batches) if outcome.batches else None,
        "utilization": outcome.utilization,
        "refused": outcome.refused / total,
        "cancelled": outcome.cancelled / total,
        "failed": outcome.failed / total,
        "retried": outcome.retried,
        "starts": outcome.starts,
        "in_flight": outcome.held,
        **{f"{name}_load": share for name, share in shares.items()},
        "covers": own.max_waiting / each.rate,
        "start": costs.start,
        "first": max(shares, key=lambda name: shares[name]),
    }


def simulate(costs: Costs, args: argparse.Namespace) -> list[Row]:
    """Rows for every rate: one server, and as many as it takes where that is more."""
    rows = []
    for rate in tqdm(whole_numbers(args.rates, "--rates"), desc="simulate", unit="rate", disable=None):
        traffic = traffic_of(args, rate / 60)
        enough = max(1, math.ceil(traffic.rate * costs.ingress / LOAD))
        rows += [row(costs, traffic, servers, args) for servers in sorted({1, enough})]
    return rows


def traffic_of(args: argparse.Namespace, rate: float) -> Traffic:
    return Traffic(rate, sizes_of(args.sizes), args.burst, going=args.going)


def sizes_of(text: str) -> dict[int, float]:
    """`128:3,256` as shares by size.

    Raises:
        MRCError: something else.
    """
    found: dict[int, float] = {}
    for part in text.split(","):
        size, colon, share = part.strip().partition(":")
        try:
            found[int(size)] = float(share) if colon else 1.0
        except ValueError:
            found = {}
        if not found or min(found) < 1 or not 0 < min(found.values()) <= max(found.values()) < math.inf:
            raise MRCError(f"--sizes is {text!r}; give pixels, or pixels:share, separated by commas")
    return found


def plot(path: Path, costs: Costs, args: argparse.Namespace) -> None:
    """Latency by load for small and large fleets without bursts, and what one server can take."""
    fleet, figure = fleet_of(args, 1), new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    shares = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    unit = replace(traffic_of(args, 1.0), burst=1.0)
    capacity = fleet.max_batch / batch_seconds(costs, unit, fleet.max_batch)
    for replicas in (2, 8, 32):
        some = replace(fleet, replicas=(replicas, replicas))
        free = replace(costs, ingress=0.0)
        p99 = []
        for share in tqdm(shares, desc=f"{replicas} replicas", unit="load", disable=None):
            traffic = replace(unit, rate=share * capacity * replicas)
            asked = arrivals(traffic, args.edits / 5 / traffic.rate, args.seed)
            outcome = Simulation(free, some, args.seed).run(asked)
            p99.append(outcome.percentile(99))
        left.plot(shares, p99, marker="o", label=f"{replicas} replicas")
    left.set(xlabel="load of the replicas", ylabel="p99, seconds", title="Latency by load")
    rates = [10 * 10 ** (i / 4) for i in range(17)]
    lines: dict[str, list[float]] = {}
    for rate in rates:
        traffic, outcome = replace(unit, rate=rate / 60), Outcome(held=fleet.max_waiting)
        for name, value in loads(costs, traffic, fleet, outcome, args.link * 1e9, args.memory * 1e9).items():
            if name in ("server", "network"):
                lines.setdefault(name, []).append(value)
    for name, values in lines.items():
        right.loglog(rates, values, label=name)
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xlabel="edits a minute", ylabel="share of what it can do", title="One server")
    for axes in (left, right):
        axes.legend()
    write_figure(path, figure)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("costs", type=Path, nargs="?", metavar="COSTS", help="JSON file of the measured costs")
    parser.add_argument(
        "--measure", metavar="MODEL", help="first measure MODEL here and write COSTS (default: read COSTS)"
    )
    parser.add_argument(
        "--against-ray",
        metavar="MODEL",
        help="compare the simulation with a real fleet of two replicas (default: do not)",
    )
    parser.add_argument("--backend", default="auto", help="backend of the measured model (default auto)")
    parser.add_argument("--steps", type=int, help="denoising steps of the measured edits (default: the model's own)")
    parser.add_argument("--rates", default="10,1000,100000", help="edits a minute (default 10,1000,100000)")
    parser.add_argument("--sizes", default="128", help="pixels of a side, or pixels:share,… (default 128)")
    parser.add_argument("--edits", type=int, default=100_000, help="simulated edits of each row (default 100000)")
    parser.add_argument(
        "--burst",
        type=float,
        default=3.0,
        help="how many times as many edits arrive in a burst, a tenth of the time (default 3)",
    )
    parser.add_argument(
        "--going", type=float, default=0.02, help="share of clients that disconnect early (default 0.02)"
    )
    parser.add_argument("--lifetime", type=float, default=24.0, help="mean hours of a replica (default 24)")
    parser.add_argument(
        "--always", type=float, default=1.0, help="share of the replicas that are never stopped (default 1)"
    )
    parser.add_argument("--max-batch", type=int, default=4, help="images edited together (default 4)")
    parser.add_argument("--max-waiting", type=int, default=64, help="edits that wait for a replica (default 64)")
    parser.add_argument("--link", type=float, default=10.0, help="Gbit/s of a server's network (default 10)")
    parser.add_argument("--memory", type=float, default=16.0, help="GB of a server's memory (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (default 0)")
    parser.add_argument(
        "--load", type=float, default=0.6, help="load of the replicas, with --against-ray (default 0.6)"
    )
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="seconds in which edits arrive, with --against-ray (default 90)"
    )
    add_output_options(parser, plot="write latency by load, and the loads of one server (default none)")
    return parser


def bodies_of(args: argparse.Namespace) -> dict[int, bytes]:
    return {size: request_body(size, args.steps) for size in sizes_of(args.sizes)}


def measured(args: argparse.Namespace) -> Costs:
    """The costs of two replicas on this machine."""
    fleet = fleet_of(args, 2)
    with running(args.measure, args.backend, fleet) as server:
        return measure(server, fleet, bodies_of(args))


def against_ray(args: argparse.Namespace) -> list[Row]:
    """What two real replicas and two simulated ones make of the same arrivals.

    Batches are timed under other arrivals of the same rate, before and after these: a machine that changes its pace
    does so for both.
    """
    fleet, bodies = fleet_of(args, 2), bodies_of(args)
    with running(args.against_ray, args.backend, fleet) as server:
        busy = measure(server, fleet, bodies)
        unit = replace(traffic_of(args, 1.0), going=0.0)
        rate = args.load * fleet.replicas[1] * fleet.max_batch / batch_seconds(busy, unit, fleet.max_batch)
        asked = [arrivals(replace(unit, rate=rate), args.seconds, args.seed + run) for run in range(3)]
        answers = [replay(server.address, each, bodies) for each in asked]
    costs = under_load(busy, [*zip(asked[0], answers[0], strict=True), *zip(asked[2], answers[2], strict=True)])
    check(costs, fleet, bodies)
    if args.costs:
        write_json(args.costs, asdict(costs))
    return compare(costs, fleet, asked[1], answers[1])


def fleet_of(args: argparse.Namespace, replicas: int) -> Fleet:
    return Fleet((replicas, replicas), args.max_batch, args.max_waiting, args.lifetime * 3600)


def check_options(args: argparse.Namespace) -> None:
    require_at_least(args, edits=1, max_batch=1, max_waiting=1, seed=0)
    ranges = dict.fromkeys(("lifetime", "link", "memory", "seconds", "load"), (0.001, math.inf))
    ranges |= {"burst": (1, math.inf), "always": (0, 1), "going": (0, 1)}
    for name, (least, most) in ranges.items():
        if not least <= (value := getattr(args, name)) <= most:
            raise MRCError(
                f"--{name} is {value:g}; give {least:g} " + ("or more" if most == math.inf else f"to {most:g}")
            )
    if args.costs is None and not args.against_ray:
        raise MRCError("COSTS is missing; give a file, and --measure MODEL to write it")


def run(args: argparse.Namespace) -> None:
    check_options(args)
    if args.against_ray:
        rows = against_ray(args)
        machine = describe_machine()
        print(table(HELD, rows, note=f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}").markdown())
        write_report(args, {"machine": machine, "rows": rows}, rows)
        return
    if args.measure:
        write_json(args.costs, asdict(measured(args)))
    costs = read_record(args.costs, Costs, "write it anew with --measure")
    check(costs, fleet_of(args, 1), sizes_of(args.sizes))
    rows = simulate(costs, args)
    note = (
        f"bursts ×{args.burst:g}, {args.going:.0%} of the clients go, a replica lives {args.lifetime:g} h "
        f"and starts in {costs.start:.0f} s, {args.always:.0%} of them always run"
    )
    print(table(COLUMNS, rows, note=note).markdown())
    if args.plot:
        plot(args.plot, costs, args)
    write_report(args, {"costs": asdict(costs), "rows": rows}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
