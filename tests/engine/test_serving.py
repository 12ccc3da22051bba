"""Requests at once: each gets its own edit, whatever becomes of the others."""

import asyncio
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import AsyncEngine, Engine
from mrc_edit.engine.waiting import Closed, QueueFull, TimedOut

STEPS = 3
LATENT = {"num_inference_steps": STEPS, "resolution": 0, "scheduler": "euler", "output_type": "latent"}


class Watched(Engine):
    """Remembers the seeds of its batches, and waits before each step until it may go on."""

    def __init__(self, backend):
        super().__init__(backend)
        self.batches = []
        self.steps = 0
        self.at_step = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)

    def run(self, requests, callback=None):
        self.batches.append([edit.seed for request in requests for edit in request.edits])
        return Engine(Stepwise(self)).run(requests, callback)

    def go(self, steps=10_000):
        self.may_go.release(steps)

    async def reached(self):
        """Wait until the engine stands before a step."""
        assert await asyncio.to_thread(self.at_step.acquire, timeout=60)


class Stepwise:
    """The backend of a watched engine, whose U-Net waits before each step."""

    def __init__(self, watched):
        self.watched = watched

    def __getattr__(self, name):
        return getattr(self.watched.backend, name)

    def guided_unet(self, conditions, **rows):
        unet = self.watched.backend.guided_unet(conditions, **rows)
        full = unet.full

        def wait_then_compute(step, sample, guidance):
            self.watched.steps += 1
            self.watched.at_step.release()
            assert self.watched.may_go.acquire(timeout=60)
            return full(step, sample, guidance)

        unet.full = wait_then_compute
        return unet


@pytest.fixture
def watched(engine):
    return Watched(engine.backend)


def start(serving, photo, seed, **options):
    """A task that edits with `seed`."""
    return asyncio.create_task(serving.edit(photo, f"snow {seed}", seed=seed, **LATENT | options))


async def settle(serving, waiting):
    """Until so many wait for the engine and no image is being read."""
    async with asyncio.timeout(60):
        while serving.checking or len(serving.waiting) != waiting:
            await asyncio.sleep(0.001)


async def plugged(serving, watched, photo):
    """Occupy the engine with a request of seed 0, so that what comes gathers behind it."""
    plug = start(serving, photo, 0)
    await watched.reached()
    return plug


def test_each_of_a_batch_gets_its_own_warnings_and_python_none(recwarn):
    """A text that is cut, and words that `mini` has not learned; each time, where Python would warn once."""
    engine = Watched(Engine.from_pretrained("mini").backend)
    engine.go()
    wide = np.zeros((64, 128, 3), np.uint8)
    texts = ["make it red and " * 50, "add a giraffe", "make it sepia", "add a giraffe"]

    async def serve():
        async with AsyncEngine(engine) as serving:
            plug = serving.edit(wide, "make it night", resolution=64, num_inference_steps=1)
            edits = (
                serving.edit(wide, text, resolution=64, num_inference_steps=1, scheduler="euler") for text in texts
            )
            return await asyncio.gather(plug, *edits)

    _, cut, *others = asyncio.run(serve())
    assert len(engine.batches[-1]) > 1
    assert ["202 tokens" in text for text in cut.warnings] == [True]
    expected = "the model has not learned giraffe; it knows few words, and may do something else"
    assert [result.warnings for result in others] == [[expected], [], [expected]]
    assert not recwarn.list


def test_a_queue_that_fails_is_closed_and_says_why_at_once(photo, caplog):
    """A fault of the queue itself, such as a batch without outcomes."""

    async def serve():
        async with AsyncEngine(Engine.from_pretrained("mini")) as serving:
            serving.run = lambda batch: []
            with pytest.raises(Closed):
                await serving.edit(photo, "snow", **LATENT)
            assert not serving.open and not serving.room()
            assert "zip() argument" in caplog.text and len(caplog.records) == 1

    asyncio.run(serve())


def test_fifty_requests_at_once(error):
    """Bit for bit what they give in another batch of the same shape, within rounding what they give alone."""
    engine = Engine.from_pretrained("mini")
    watched = Watched(engine.backend)
    watched.go()
    draw = np.random.RandomState(0)
    texts = ["make it sepia", "make it night", "change the background to sand", "turn the disc red", "add a blue ring"]
    options = {"num_inference_steps": 2, "scheduler": "euler", "guidance_scale": 1.5, "image_guidance_scale": 1.2}
    options |= {"output_type": "latent", "resolution": 0}
    requests = [
        {
            "image": draw.randint(0, 256, (64, 64, 3)).astype(np.uint8),
            "instruction": texts[i % 5],
            "reward_scores": tuple(draw.randint(0, 6, 3).tolist()),
            "seed": int(draw.randint(2**31)),
        }
        for i in range(50)
    ]
    of_seed = {request["seed"]: request for request in requests}

    async def serve():
        async with AsyncEngine(watched, max_batch=7) as serving:
            return await asyncio.gather(*(serving.edit(**request, **options) for request in requests))

    results = asyncio.run(serve())
    found = {result.seed: result.images[0] for result in results}
    assert [result.seed for result in results] == list(of_seed)
    assert sum(map(len, watched.batches)) == 50 and sum(len(batch) == 7 for batch in watched.batches) > 3

    def together(seeds):
        chosen = [of_seed[seed] for seed in seeds]
        lists = {name: [request[name] for request in chosen] for name in chosen[0]}
        return dict(zip(seeds, engine.edit(**lists, **options).images, strict=True))

    full = [batch for batch in watched.batches if len(batch) == 7]
    for i in range(len(full)):  # everyone at the same place among others
        seeds = [full[(i + place) % len(full)][place] for place in range(7)]
        for seed, latents in together(seeds).items():
            np.testing.assert_array_equal(latents, found[seed])
    for seed in of_seed:
        assert error(together([seed])[seed], found[seed]) <= 1e-5


def test_a_result_is_that_of_an_edit_alone(engine, photo, error):
    async def serve():
        async with AsyncEngine(engine) as serving:
            return await serving.edit(photo, "snow", seed=5, reward_scores=(1, 2, 3), **LATENT)

    result = asyncio.run(serve())
    alone = engine.edit(photo, "snow", seed=5, reward_scores=(1, 2, 3), **LATENT)
    np.testing.assert_array_equal(result.images, alone.images)
    assert result.seed == 5 and result.timings.keys() == alone.timings.keys()


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"prompt": "snow", "num_images_per_prompt": 3, "seed": [5, 6, 7]},
        lambda: {"prompt": "snow", "negative_prompt": "blurry", "generator": generators()[0], "scheduler": None},
        lambda: {"prompt": "snow", "num_images_per_prompt": 2, "generator": generators()[0], "scheduler": None},
        lambda: {"instruction": ["snow", "rain"], "generator": generators(), "scheduler": None},
        lambda: {"prompt": "snow", "num_images_per_prompt": 2, "output_type": "pt", "seed": [1, 2]},
        lambda: {"instruction": ["snow"], "output_type": "np", "seed": 3, "fit": "pad", "keep_size": True},
    ],
)
def test_it_takes_what_an_engine_takes(engine, photo, error, options):
    """In a batch with others; a generator is left where the engine leaves it."""
    given, expected = LATENT | options(), LATENT | options()

    async def serve():
        async with AsyncEngine(engine) as serving:
            other = given | {"prompt": "rain", "instruction": None, "generator": None, "seed": None}
            results = await asyncio.gather(serving.edit(photo, **given), serving.edit(photo, **other))
        return results[0]

    found, alone = asyncio.run(serve()), engine.edit(photo, **expected)
    assert type(found.images) is type(alone.images) and error(np.asarray(found.images), np.asarray(alone.images)) < 1e-5
    assert (found.seed, found.boxes) == (alone.seed, alone.boxes)
    for one, other in zip(*(np.atleast_1d(each.get("generator")) for each in (given, expected)), strict=True):
        assert one is None or torch.equal(one.get_state(), other.get_state())


def test_images_of_two_sizes_in_one_request(engine, photo, error):
    images = [photo, photo[:64]]

    async def serve():
        async with AsyncEngine(engine) as serving:
            return await asyncio.gather(*(serving.edit(images, "snow", seed=[s, 9], **LATENT) for s in (1, 2)))

    for seed, result in zip((1, 2), asyncio.run(serve()), strict=True):
        expected = engine.edit(images, "snow", seed=[seed, 9], **LATENT).images
        for found, alone in zip(result.images, expected, strict=True):
            assert error(found, alone) < 1e-5


def test_requests_of_many_images_fill_a_batch_together(watched, photo):
    async def serve():
        async with AsyncEngine(watched, max_batch=4) as serving:
            tasks = [await plugged(serving, watched, photo)]
            for i, count in enumerate((2, 1, 3, 1), start=1):
                seeds = [10 * i + j for j in range(count)]
                tasks.append(start(serving, photo, seeds, num_images_per_prompt=count))
                await settle(serving, i)
            watched.go()
            await asyncio.gather(*tasks)

    asyncio.run(serve())
    assert watched.batches == [[0], [10, 11, 20], [30, 31, 32, 40]]  # oldest first


def test_a_generator_draws_for_one_request_at_a_time(watched, engine, photo, error):
    """Two that ask with one generator get what they get one after the other, also where the first batch fails."""
    options = LATENT | {"scheduler": "euler_ancestral"}
    asked, plain = generators()[0], generators()[0]

    async def serve():
        async with AsyncEngine(watched) as serving:
            plug = await plugged(serving, watched, photo)
            tasks = []
            for i in range(2):
                tasks.append(start(serving, photo, None, generator=asked, scheduler="euler_ancestral"))
                await settle(serving, i + 1)
            watched.go()
            return (await asyncio.gather(plug, *tasks))[1:]

    for result in asyncio.run(serve()):
        assert error(result.images, engine.edit(photo, "snow None", generator=plain, **options).images) < 1e-5
    assert [len(batch) for batch in watched.batches] == [1, 1, 1]


def test_a_batch_that_fails_does_not_advance_a_generator(watched, engine, photo, error, monkeypatch):
    """Its requests are edited again one by one, and draw the same."""
    asked, plain = generators()[0], generators()[0]
    options = LATENT | {"output_type": "np", "scheduler": "euler_ancestral"}
    expected = engine.edit(photo, "snow None", generator=plain, **options).images[0]
    decode = engine.backend.vae_decoder

    def refuse_two(*, latents):
        if len(latents) == 2:
            raise MRCError("two at once")
        return decode(latents=latents)

    monkeypatch.setattr(engine.backend, "vae_decoder", refuse_two)

    async def serve():
        async with AsyncEngine(watched) as serving:
            tasks = [await plugged(serving, watched, photo)]
            tasks += [start(serving, photo, None, **options, generator=asked), start(serving, photo, 1, **options)]
            await settle(serving, 2)
            watched.go()
            return (await asyncio.gather(*tasks))[1]

    assert error(asyncio.run(serve()).images[0], expected) < 1e-5
    assert [len(batch) for batch in watched.batches] == [1, 2, 1, 1]
    assert torch.equal(asked.get_state(), plain.get_state())


@pytest.mark.parametrize("cancelled", [(1,), (3,), (1, 2, 4)])
@pytest.mark.parametrize("before_step", [1, 2, 3])
def test_cancelling_changes_no_other(engine, photo, cancelled, before_step):
    async def serve(cancel):
        watched = Watched(engine.backend)
        async with AsyncEngine(watched, max_batch=4) as serving:
            await plugged(serving, watched, photo)
            tasks = {seed: start(serving, photo, seed) for seed in (1, 2, 3, 4)}
            await settle(serving, 4)
            watched.go(STEPS + before_step - 1)
            for _ in range(STEPS + before_step - 1):
                await watched.reached()
            for seed in cancel:
                tasks[seed].cancel()
            watched.go()
            return dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))

    whole, partial = asyncio.run(serve(())), asyncio.run(serve(cancelled))
    for seed in (1, 2, 3, 4):
        if seed in cancelled:
            assert isinstance(partial[seed], asyncio.CancelledError)
        else:
            np.testing.assert_array_equal(partial[seed].images, whole[seed].images)


@pytest.mark.parametrize("before_step", [1, 2])
def test_a_batch_nobody_waits_for_stops_within_a_step(watched, photo, before_step):
    async def serve():
        async with AsyncEngine(watched) as serving:
            task = start(serving, photo, 1, num_inference_steps=50)
            for _ in range(before_step - 1):
                await watched.reached()
                watched.go(1)
            await watched.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task  # at once: the engine still stands before its step
            watched.go(1)
            after = start(serving, photo, 2)
            await watched.reached()
            assert watched.steps == before_step + 1 and watched.batches == [[1], [2]]
            watched.go()
            assert (await after).seed == 2

    asyncio.run(serve())


def test_a_request_cancelled_while_it_waits_costs_nothing(watched, photo):
    async def serve():
        async with AsyncEngine(watched) as serving:
            plug = await plugged(serving, watched, photo)
            task, other = start(serving, photo, 1), start(serving, photo, 2)
            await settle(serving, 2)
            task.cancel()
            await settle(serving, 1)
            watched.go()
            await asyncio.gather(plug, other)

    asyncio.run(serve())
    assert watched.batches == [[0], [2]] and watched.steps == 2 * STEPS


def test_time_outs(watched, photo):
    async def serve():
        async with AsyncEngine(watched) as serving:
            task = start(serving, photo, 1, timeout=0.2, num_inference_steps=50)
            await watched.reached()
            behind = start(serving, photo, 2, timeout=0.2)
            for late in (task, behind):
                with pytest.raises(TimedOut, match="within 0"):
                    await late
            assert not serving.waiting
            watched.go()
            assert (await start(serving, photo, 3, timeout=60)).seed == 3

    asyncio.run(serve())
    assert watched.batches == [[1], [3]] and watched.steps == 1 + STEPS
    assert issubclass(TimedOut, TimeoutError) and issubclass(TimedOut, MRCError)


def test_a_full_queue_refuses(watched, photo):
    async def serve():
        async with AsyncEngine(watched, max_waiting=2) as serving:
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1), start(serving, photo, 2)]
            await asyncio.sleep(0)  # both have asked, neither image need be read yet
            with pytest.raises(QueueFull, match="2 requests wait"):
                await serving.edit(photo, "snow", seed=3, **LATENT)
            await settle(serving, 2)
            with pytest.raises(QueueFull, match="2 requests wait"):
                await serving.edit(photo, "snow", seed=3, **LATENT)
            watched.go()
            await asyncio.gather(*tasks)
            assert (await start(serving, photo, 4)).seed == 4

    asyncio.run(serve())
    # images are read at once, so either may be ready first
    assert [sorted(batch) for batch in watched.batches] == [[0], [1, 2], [4]]


def test_only_like_requests_are_batched_oldest_first(watched, photo):
    async def serve():
        async with AsyncEngine(watched, max_batch=3) as serving:
            tasks = [await plugged(serving, watched, photo)]
            for seed, options in enumerate(
                ({}, {"num_inference_steps": 2}, {}, {"guidance_scale": 2}, {"scheduler": "ddim"}, {}, {}), start=1
            ):
                tasks.append(start(serving, photo, seed, **options))
                await settle(serving, seed)
            tasks.append(start(serving, photo[:64], 8))
            await settle(serving, 8)
            watched.go()
            assert [result.seed for result in await asyncio.gather(*tasks)] == list(range(9))

    asyncio.run(serve())
    assert watched.batches == [[0], [1, 3, 6], [2], [4], [5], [7], [8]]


BAD = ({"image": "none.png"}, {"image": b""}, {"scheduler": "heun"}, {"seed": 1.5}, {"reward_scores": (6, 5, 5)})


def test_a_bad_request_never_enters_a_batch(engine, photo):
    async def serve(bad):
        watched = Watched(engine.backend)
        async with AsyncEngine(watched) as serving:
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1)]
            await settle(serving, 1)
            for change in bad:
                with pytest.raises(MRCError):
                    await serving.edit(**{"image": photo, "instruction": "snow", **LATENT} | change)
            tasks.append(start(serving, photo, 2))
            await settle(serving, 2)
            watched.go()
            results = await asyncio.gather(*tasks)
        assert watched.batches == [[0], [1, 2]]
        return results

    for expected, result in zip(asyncio.run(serve(())), asyncio.run(serve(BAD)), strict=True):
        np.testing.assert_array_equal(result.images, expected.images)


def test_a_failing_request_fails_alone(engine, photo, error, monkeypatch):
    """One that only the engine can refuse, such as an overflow."""
    encode = engine.backend.vae_encoder

    def overflow(*, images):
        white = (images == 1).all(axis=(1, 2, 3), keepdims=True)
        return encode(images=images) + np.where(white, np.float32(np.inf), np.float32(0))

    async def serve():
        async with AsyncEngine(watched) as serving:
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1)]
            tasks += [start(serving, np.full_like(photo, 255), 2), start(serving, photo, 3)]
            await settle(serving, 3)
            watched.go()
            return await asyncio.gather(*tasks, return_exceptions=True)

    monkeypatch.setattr(engine.backend, "vae_encoder", overflow)
    watched = Watched(engine.backend)
    _, first, failed, last = asyncio.run(serve())
    assert isinstance(failed, MRCError) and "vae_encoder" in str(failed)
    for result in (first, last):
        alone = engine.edit(photo, f"snow {result.seed}", seed=result.seed, **LATENT)
        assert error(result.images, alone.images) <= 1e-5


@pytest.fixture(scope="module")
def mini():
    return Engine.from_pretrained("mini")


class Panic(BaseException):
    """As native libraries raise it: no Exception."""


@pytest.mark.parametrize("error", [Panic("thread panicked"), SystemExit(3), StopIteration(), RuntimeError("shapes")])
@pytest.mark.parametrize("place", ["text_encoder", "guided_unet"])
def test_no_exception_of_one_request_stops_the_server(photo, error, place):
    """The batch that it meets is edited one by one, the one that fails alone is told, later ones are edited."""
    engine = Engine.from_pretrained("mini")
    compute, calls = getattr(engine.backend, place), []

    def fail_twice(*args, **named):
        calls.append(1)
        if len(calls) <= 2:
            raise error
        return compute(*args, **named)

    setattr(engine.backend, place, fail_twice)
    engine = Watched(engine.backend)
    engine.go()

    async def serve():
        async with AsyncEngine(engine, max_batch=3) as serving, asyncio.timeout(60):
            asked = asyncio.gather(*(start(serving, photo, seed) for seed in (1, 2, 3)), return_exceptions=True)
            return [*await asked, await start(serving, photo, 4)]

    results = asyncio.run(serve())
    failed = [result for result in results if isinstance(result, MRCError)]
    assert 1 <= len(failed) <= 2 and type(error).__name__ in str(failed[0])
    assert all(np.isfinite(result.images).all() for result in results if result not in failed)


@pytest.mark.parametrize("error", [Panic("thread panicked"), SystemExit(3), StopIteration()])
def test_nor_one_of_an_image(mini, photo, error, monkeypatch):
    class Hostile(np.ndarray):
        @property
        def dtype(self):
            raise error

    async def serve():
        async with AsyncEngine(mini) as serving:
            with pytest.raises(MRCError, match=r"the edit failed|cannot be decoded"):
                await serving.edit(photo.view(Hostile), "snow", **LATENT)
            return await serving.edit(photo, "snow", seed=2, **LATENT)

    assert asyncio.run(serve()).seed == 2


def test_a_file_that_never_ends_takes_no_thread_of_others(mini, photo):
    """Nor does it hinder closing; asyncio's own threads stay free."""
    release = threading.Event()

    class Stuck(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            release.wait()
            return 0

    async def serve():
        async with AsyncEngine(mini) as serving:
            with pytest.raises(TimedOut):
                await serving.edit(Stuck(), "snow", timeout=0.2, **LATENT)
            others = asyncio.gather(*(serving.edit(photo, "snow", seed=i, **LATENT) for i in range(3)))
            assert len(await asyncio.wait_for(others, 60)) == 3
            stuck = asyncio.gather(
                *(serving.edit(Stuck(), "snow", timeout=0.2, **LATENT) for _ in range(8)), return_exceptions=True
            )
            assert all(isinstance(error, TimedOut) for error in await stuck)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 60) == 5

    try:
        asyncio.run(serve())
    finally:
        release.set()


STUCK = """
import asyncio, threading, types
from mrc_edit.engine import AsyncEngine

class Stuck(AsyncEngine):
    def read(self, request):
        threading.Event().wait()

async def serve():
    async with Stuck(types.SimpleNamespace(tier=None)) as serving:
        await serving.edit(timeout=0.1)

asyncio.run(serve())
"""


def test_nor_does_it_keep_the_process():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=60)
    assert "TimedOut" in done.stderr


def test_a_worker_that_fails_refuses_all(mini, photo, monkeypatch):
    async def serve():
        async with AsyncEngine(mini) as serving:
            monkeypatch.setattr(serving, "run", lambda batch: [])  # an outcome too few
            with pytest.raises(MRCError, match="closed"):
                await asyncio.wait_for(start(serving, photo, 1), 60)
            with pytest.raises(MRCError, match="closed"):
                await start(serving, photo, 2)

    asyncio.run(serve())


def test_closing_stops_what_runs_and_refuses_what_waits(watched, photo):
    async def serve():
        serving = AsyncEngine(watched)
        with pytest.raises(MRCError, match="closed"):
            await serving.edit(photo, "snow")
        async with serving:
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1)]
            await settle(serving, 1)
            watched.go()
            watched.may_go.acquire()  # the engine may take the step it stands before, and all others
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, MRCError) and "closed" in str(result)
        with pytest.raises(MRCError, match="closed"):
            await serving.edit(photo, "snow")

    asyncio.run(serve())
    assert watched.batches == [[0]] and watched.steps == 1


@pytest.mark.parametrize("name", ["max_batch", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_bad_limits(engine, name, value):
    with pytest.raises(MRCError, match=name):
        AsyncEngine(engine, **{name: value})


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"timeout": 0}, MRCError, "timeout"),
        ({"timeout": "1"}, MRCError, "timeout"),
        ({"timeout": float("nan")}, MRCError, "timeout"),
        ({"image": ["x", "y"]}, MRCError, "exist"),
        ({"instruction": ["a", "b", "c"], "image": ["x"]}, MRCError, "exist"),
        ({"num_images_per_prompt": 9}, MRCError, "9 edits in one request, and max_batch is 8"),
        ({"instruction": ["a"] * 9}, MRCError, "9 edits"),
        ({"prompt": "rain"}, MRCError, "both"),
        ({"seed": 3, "generator": torch.Generator()}, MRCError, "both"),
        ({"callback_on_step_end": print}, TypeError, "callback"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_bad_requests(engine, photo, change, kind, word):
    async def serve():
        async with AsyncEngine(engine) as serving:
            await serving.edit(**{"image": photo, "instruction": "snow", **LATENT} | change)

    with pytest.raises(kind, match=word):
        asyncio.run(serve())


def test_each_request_hears_of_its_own_steps(watched, photo):
    """One of two images, one of one that is cancelled after a step, one that listens to nothing."""
    heard = {1: [], 2: []}

    def listener(name):
        return lambda step, steps, latents: heard[name].append((step, steps, latents))

    async def serve():
        async with AsyncEngine(watched) as serving:
            plug = await plugged(serving, watched, photo)
            two = start(serving, photo, [1, 11], num_images_per_prompt=2, on_step=listener(1))
            await settle(serving, 1)
            gone = start(serving, photo, 2, on_step=listener(2))
            await settle(serving, 2)
            other = start(serving, photo, 3)
            await settle(serving, 3)
            watched.go(STEPS + 1)
            for _ in range(STEPS + 1):
                await watched.reached()
            gone.cancel()
            await asyncio.sleep(0)
            watched.go()
            return await asyncio.gather(plug, two, other)

    plug, two, other = asyncio.run(serve())
    assert [(step, steps) for step, steps, _ in heard[1]] == [(i, STEPS) for i in range(STEPS)]
    assert all(latents.shape == two.images.shape for _, _, latents in heard[1])
    np.testing.assert_array_equal(heard[1][-1][2], two.images)
    assert len(heard[2]) == 1 and heard[2][0][2].shape == other.images.shape
    assert [result.batch_size for result in (plug, two, other)] == [1, 4, 4]
    assert plug.waited < two.waited and min(plug.waited, other.waited) > 0


def test_steps_of_two_sizes_come_size_after_size(mini, photo):
    heard = []

    async def serve():
        async with AsyncEngine(mini) as serving:
            images = [photo, photo[:64], photo]
            listen = lambda step, _, latents: heard.append((step, latents))  # noqa: E731
            return await serving.edit(images, "snow", seed=[1, 2, 3], on_step=listen, **LATENT)

    first, second, third = asyncio.run(serve()).images
    assert [step for step, _ in heard] == [*range(STEPS)] * 2
    np.testing.assert_array_equal(heard[STEPS - 1][1], [first, third])
    np.testing.assert_array_equal(heard[-1][1], [second])


def test_whoever_is_cancelled_the_others_get_what_engine_edit_gives_for_the_batch(mini, photo):
    """Bit for bit, the cancelled one among them."""
    seeds = [1, 2, 3]

    async def serve():
        watched = Watched(mini.backend)
        async with AsyncEngine(watched) as serving:
            await plugged(serving, watched, photo)
            tasks = []
            for seed in seeds:
                tasks.append(start(serving, photo, seed))
                await settle(serving, seed)
            watched.go(STEPS + 1)
            for _ in range(STEPS + 1):
                await watched.reached()
            tasks[1].cancel()
            watched.go()
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, gone, last = asyncio.run(serve())
    together = mini.edit([photo] * 3, [f"snow {seed}" for seed in seeds], seed=seeds, **LATENT).images
    assert isinstance(gone, asyncio.CancelledError)
    np.testing.assert_array_equal([first.images[0], last.images[0]], [together[0], together[2]])


def test_what_on_step_raises_ends_that_request_alone(mini, photo):
    calls = []

    def fail(*_):
        calls.append(1)
        raise KeyError("preview")

    async def serve():
        watched = Watched(mini.backend)
        async with AsyncEngine(watched) as serving:
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1, on_step=fail)]
            tasks.append(start(serving, photo, 2))
            await settle(serving, 2)
            watched.go()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            alone = start(serving, photo, 3, on_step=fail, num_inference_steps=50)
            with pytest.raises(MRCError, match="KeyError"):
                await alone
            return outcomes, watched.steps

    (_, failed, other), steps = asyncio.run(serve())
    assert isinstance(failed, MRCError) and "preview" in str(failed) and other.seed == 2
    assert len(calls) == 2 and steps == 2 * STEPS + 1  # one that nobody else waits for stops within a step


def test_room(watched, photo):
    async def serve():
        serving = AsyncEngine(watched, max_waiting=2)
        assert not serving.room()
        async with serving:
            assert serving.room(2) and not serving.room(3)
            tasks = [await plugged(serving, watched, photo), start(serving, photo, 1)]
            await asyncio.sleep(0)  # asked for; its image need not be read yet
            assert serving.room(1) and not serving.room(2)
            watched.go()
            await asyncio.gather(*tasks)
            assert serving.room(2)
        assert not serving.room()

    asyncio.run(serve())


@pytest.mark.parametrize(("seconds", "finishes"), [(60, True), (0, False)])
def test_draining(watched, photo, seconds, finishes):
    async def serve():
        async with AsyncEngine(watched) as serving:
            running = await plugged(serving, watched, photo)
            waiting = start(serving, photo, 1)
            await settle(serving, 1)
            draining = asyncio.create_task(serving.drain(seconds))
            with pytest.raises(Closed):
                await waiting
            with pytest.raises(Closed):
                await serving.edit(photo, "snow", **LATENT)
            if not finishes:
                await draining
            watched.go()
            await draining
            return await asyncio.gather(running, return_exceptions=True)

    (outcome,) = asyncio.run(serve())
    assert watched.batches == [[0]]
    if finishes:
        assert outcome.seed == 0 and watched.steps == STEPS
    else:
        assert isinstance(outcome, Closed) and watched.steps == 1


def test_each_request_has_its_own_tier(mini, photo, error):
    """Requests of one tier go together; each gets what an engine of that tier gives."""
    fast = Engine.from_pretrained("mini", tier="fast")
    options = LATENT | {"num_inference_steps": 4}

    async def serve():
        async with AsyncEngine(mini) as serving:
            with pytest.raises(MRCError, match="tier is 'slow'") as refused:
                await serving.edit(photo, "snow", tier="slow")
            assert refused.value.argument == "tier"
            tiers = ("exact", "fast", None, "fast")
            return await asyncio.gather(*(serving.edit(photo, "snow", seed=1, tier=t, **options) for t in tiers))

    exact, quick = mini.edit(photo, "snow", seed=1, **options), fast.edit(photo, "snow", seed=1, **options)
    assert error(quick.images, exact.images) > 1e-3
    for result, expected in zip(asyncio.run(serve()), (exact, quick, exact, quick), strict=True):
        assert error(result.images, expected.images) < 1e-5
