"""The simulated fleet keeps the laws of queues, and its own."""

import json
import math
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean

import pytest

from mrc_edit.bench import fleet
from mrc_edit.bench.fleet_check import compare, under_load
from mrc_edit.bench.fleet_model import Arrival, Costs, Fleet, Service
from mrc_edit.bench.fleet_run import Answer, batches, idle_between
from mrc_edit.bench.simulation import Simulation
from mrc_edit.bench.traffic import Traffic, arrivals
from mrc_edit.core.errors import MRCError

SIZE = 128


def costs(*seconds, **others):
    """Batches of 1, 2, … take so many seconds each."""
    return Costs([Service(SIZE, batch, [time]) for batch, time in enumerate(seconds, 1)], **others)


def poisson(rate, count, seed=0, **others):
    return arrivals(Traffic(rate, {SIZE: 1}, **others), count / rate, seed)


def simulate(costs, fleet, asked, seed=0):
    simulation = Simulation(costs, fleet, seed)
    outcome = simulation.run(asked)
    assert len(asked) == outcome.done + outcome.refused + outcome.cancelled + outcome.failed
    assert (simulation.seats, simulation.inside) == (0, 0) and not simulation.waiting
    return outcome


def alone(max_waiting=10**9, **others):
    return Fleet((1, 1), 1, max_waiting, **others)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_replica_is_an_m_d_1_queue(load):
    """Its mean wait is that of Pollaczek and Khinchine; it works its share of the time."""
    outcome = simulate(costs(1.0), alone(), poisson(load, 20_000))
    assert fmean(outcome.latencies) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)
    assert outcome.utilization == pytest.approx(load, rel=0.02)


def test_little_s_law_holds_with_two_replicas_and_batches():
    """Edits in the fleet = rate × seconds that each is there: both are taken from the latencies and the times."""
    asked = poisson(3.0, 20_000)
    outcome = simulate(costs(0.5, 0.8, ingress=0.01, transit=0.02), Fleet((2, 2), 2, 10**9), asked)
    marks = sorted(
        [(a.time, 1) for a in asked]
        + [(asked[i].time + s, -1) for i, s in zip(outcome.order, outcome.latencies, strict=True)]
    )
    area, inside = 0.0, 0
    for (time, change), (later, _) in pairwise(marks):
        inside += change
        area += inside * (later - time)
    assert area == pytest.approx(sum(outcome.latencies), rel=1e-9)
    assert outcome.busy == pytest.approx(outcome.batches.count(1) * 0.5 + outcome.batches.count(2) * 0.8)


def test_first_come_first_served():
    outcome = simulate(costs(0.1, 0.15), Fleet((1, 1), 2, 10**9), poisson(15.0, 5_000))
    assert outcome.order == sorted(outcome.order)


def test_what_a_replica_can_do_at_most():
    """Full batches, one after the other."""
    outcome = simulate(costs(1.0, 1.2, 1.4, 1.6), Fleet((1, 1), 4, 10**9), [Arrival(0.0, SIZE)] * 4_001)
    assert set(outcome.batches) == {1, 4} and outcome.seconds == pytest.approx(1 + 1000 * 1.6)
    assert outcome.utilization == pytest.approx(1)


def test_sizes_do_not_go_together():
    asked = [Arrival(0.0, size) for size in (64, 128, 128, 64, 64)]
    mixed = Costs([Service(size, batch, [1.0]) for size in (64, 128) for batch in (1, 2)])
    outcome = simulate(mixed, Fleet((1, 1), 2), asked)
    assert outcome.batches == [1, 2, 2] and outcome.order == [0, 1, 2, 3, 4]


def test_the_ingress_is_a_queue_too():
    """One edit after the other passes it, however many replicas there are."""
    outcome = simulate(costs(0.001, ingress=0.5), Fleet((50, 50), 1, 10**9), [Arrival(0.0, SIZE)] * 100)
    assert outcome.ingress == pytest.approx(50) and outcome.seconds == pytest.approx(50, rel=0.02)


def test_a_full_queue_refuses():
    """One is edited, one is held by the replica, three wait."""
    outcome = simulate(costs(1.0), alone(3), [Arrival(i / 100, SIZE) for i in range(10)])
    assert (outcome.done, outcome.refused) == (5, 5)


def test_who_goes_leaves_no_work():
    """Before its batch nothing of it is done; the only one of a batch ends it."""
    asked = [Arrival(0.0, SIZE, 0.25), Arrival(0.1, SIZE, 0.05), Arrival(0.2, SIZE)]
    outcome = simulate(costs(1.0), alone(), asked)
    assert (outcome.cancelled, outcome.done) == (2, 1)
    assert outcome.busy == pytest.approx(0.25 + 1.0) and outcome.latencies == [pytest.approx(1.05)]


def test_one_of_a_batch_goes_and_the_other_is_edited():
    asked = [Arrival(0.0, SIZE), Arrival(0.1, SIZE, 1.5), Arrival(0.1, SIZE)]
    outcome = simulate(costs(1.0, 1.4), Fleet((1, 1), 2), asked)
    assert (outcome.cancelled, outcome.order, outcome.batches) == (1, [0, 2], [1, 2])
    assert outcome.busy == pytest.approx(2.4)


def test_lost_replicas_lose_no_edit():
    """What they had is edited by others, or by those that take their place; losses cost time."""
    asked = poisson(3.0, 5_000)
    mortal = Fleet((4, 4), 2, 10**9, lifetime=60.0)
    outcome = simulate(costs(1.0, 1.3, start=5.0), mortal, asked)
    steady = simulate(costs(1.0, 1.3, start=5.0), Fleet((4, 4), 2, 10**9), asked)
    assert outcome.starts > 50 and outcome.retried > 10 and outcome.failed < outcome.retried / 10
    assert steady.retried == 0 and fmean(outcome.latencies) > fmean(steady.latencies)


def test_replicas_come_under_load_and_go_after_it():
    """Later than the load by the autoscaler's delay and their start; fewer seconds are kept ready than by all."""
    asked = poisson(0.1, 60) + [Arrival(700 + arrival.time, SIZE) for arrival in poisson(6.0, 3_000)]
    asked += [Arrival(1300 + arrival.time, SIZE) for arrival in poisson(0.1, 80)]
    scaled = simulate(costs(1.0, 1.1, start=20.0), Fleet((1, 8), 2, 10**9), asked)
    fixed = simulate(costs(1.0, 1.1, start=20.0), Fleet((8, 8), 2, 10**9), asked)
    assert scaled.starts >= 4 and fixed.starts == 0
    assert scaled.available < fixed.available / 2 and scaled.percentile(99) > fixed.percentile(99)


def test_the_same_seed_gives_the_same():
    asked = poisson(3.0, 500, burst=4.0, going=0.1)
    some = Fleet((2, 3), 2, 20, lifetime=30.0)
    runs = [simulate(costs(1.0, 1.3, start=2.0), some, asked, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert asked == poisson(3.0, 500, burst=4.0, going=0.1) != poisson(3.0, 500, seed=1, burst=4.0, going=0.1)


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_traffic_has_its_rate_sizes_and_bursts(burst):
    traffic = Traffic(20.0, {64: 3, 128: 1}, burst, going=0.25, patience=5.0)
    asked = arrivals(traffic, 5_000, 0)
    assert len(asked) / 5_000 == pytest.approx(20, rel=0.05)
    assert fmean(arrival.size == 64 for arrival in asked) == pytest.approx(0.75, abs=0.01)
    goes = [arrival.patience for arrival in asked if arrival.patience < math.inf]
    assert len(goes) / len(asked) == pytest.approx(0.25, abs=0.01) and fmean(goes) == pytest.approx(5, rel=0.05)
    seconds = [0] * 5_000
    for arrival in asked:
        seconds[int(arrival.time)] += 1
    mean = fmean(seconds)
    spread = fmean((count - mean) ** 2 for count in seconds) / mean  # 1 for a Poisson process
    assert spread == pytest.approx(1, abs=0.1) if burst == 1 else spread > 3


def answer(seconds, batch, edit, ended=0.0):
    return Answer(seconds, batch, (edit,), 100, ended)


def test_a_fleet_that_does_what_is_simulated_is_matched():
    """The answers of a simulation, held against another one."""
    asked = poisson(1.5, 300)
    known, one = costs(0.5, 0.6, ingress=0.02, transit=0.05), Fleet((1, 1), 2)
    outcome = simulate(known, Fleet((1, 1), 2, 10**9), asked)
    batch_of = [(number, size) for number, size in enumerate(outcome.batches) for _ in range(size)]
    pairs = zip(outcome.latencies, batch_of, strict=True)
    answers = [answer(seconds, size, 0.5 + number / 1e9) for seconds, (number, size) in pairs]
    rows = {row["of"]: row["ratio"] for row in compare(known, one, asked, answers)}
    assert rows.keys() == {"mean", "p50", "p90", "p99", "edits a batch"}
    assert all(ratio == pytest.approx(1) for ratio in rows.values())
    slower = compare(costs(1.0, 1.2), one, asked, answers)
    assert all(row["ratio"] > 1.5 for row in slower[:4])


def test_what_was_seen_under_load_goes_before_what_was_measured():
    """Where it is enough."""
    seen = [answer(1.0, 1, 0.7 + number / 100) for number in range(5)] + [answer(1.0, 2, 0.9)] * 9
    found = under_load(costs(1.0, 2.0), [(Arrival(0.0, SIZE), each) for each in seen])
    assert [sorted(each.seconds) for each in found.service] == [[0.7, 0.71, 0.72, 0.73, 0.74], [2.0]]


def test_the_idle_time_of_a_busy_replica():
    """Two replicas that edit two for 1 s and then pause for a quarter."""
    answers = [
        answer(2.5, 2, 1.0 + batch / 1e9 + replica / 1e6, batch * 1.25 + replica * 0.625)
        for batch in range(1, 201)
        for replica in (0, 1)
        for _ in (0, 1)
    ]
    assert idle_between(answers, 2) == pytest.approx(0.25, rel=0.02)
    assert {size: len(times) for size, times in batches(answers).items()} == {2: 400}


def command(tmp_path, *flags):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(asdict(costs(0.1, 0.15, ingress=0.01, start=10.0, bytes_in=1e4, bytes_out=1e4))))
    given = [str(path), "--max-batch", "2", "--edits", "400", "--json", str(tmp_path / "rows.json"), *flags]
    fleet.run(fleet.arguments().parse_args(given))
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


def test_the_command_plans_for_every_rate(tmp_path, capsys):
    """Each rate with one server, and with as many as it takes; the more is asked, the more it takes."""
    rows = command(tmp_path, "--plot", str(tmp_path / "fleet.png"))
    assert [(row["rate"], row["servers"]) for row in rows] == [(10, 1), (1000, 1), (100_000, 1), (100_000, 24)]
    for row in rows:
        assert row["replicas"] >= 2 and row["replicas_load"] <= 0.7 + 1e-9
        assert row["p50"] <= row["p99"] and 0 <= row["utilization"] <= 1 and 0 <= row["refused"] <= 1
    assert rows[2]["first"] == "server" and rows[2]["refused"] > 0.5 > 0.05 > rows[3]["refused"]
    assert (tmp_path / "fleet.png").read_bytes().startswith(b"\x89PNG")
    assert "gives first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--sizes", "256"), "256 pixels"), (("--sizes", "a"), "--sizes"), (("--burst", "0.5"), "--burst"),
     (("--max-batch", "3"), "batches of 3"), (("--going", "2"), "--going"), (("--rates", "0"), "--rates")],
)  # fmt: skip
def test_what_the_command_refuses(tmp_path, flags, message):
    with pytest.raises(MRCError, match=message):
        command(tmp_path, *flags)
    with pytest.raises(MRCError, match="COSTS"):
        fleet.run(fleet.arguments().parse_args([]))
