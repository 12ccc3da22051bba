"""Recordings, with a recorder that behaves as CUDA graphs do: a replay reads and writes the tensors it was recorded
with, and all recordings overwrite one scratch memory."""

import threading

import numpy as np
import pytest
import torch

from mrc_edit.engine import Engine
from mrc_edit.engine.backends import recordings
from mrc_edit.engine.backends.recordings import Recorded
from mrc_edit.engine.backends.torch import TorchLoop
from mrc_edit.kernels import ops

LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3}


class FakeMemory:
    """In place of `DeviceMemory`, on the CPU."""

    def __init__(self, device=None):
        self.lock = threading.RLock()
        self.captured, self.written = 0, []

    def capture(self, function):
        self.captured += 1
        outputs = tuple(output.clone() for output in function())
        self.written.append(outputs)

        def replay():
            results = function()
            for other in self.written:  # any recording may overwrite what another left
                for tensor in other:
                    tensor.fill_(torch.nan)
            for output, result in zip(outputs, results, strict=True):
                output.copy_(result)

        return replay, outputs


@pytest.fixture
def recorded():
    """Makes every graph of an engine over `torch` a recorded one, as on a card; returns the memory."""

    def make(engine, dtype=torch.float32):
        backend, memory = engine.backend, FakeMemory()
        backend.calls = {name: Recorded(module, dtype, memory) for name, module in backend.modules.items()}
        return memory

    return make


@pytest.mark.parametrize("tier", ["exact", "fast", "turbo"])
@pytest.mark.parametrize("guidance", [(7.5, 1.5), (1.5, 1.0), (1.0, 1.0)])
def test_recorded_is_as_plain(tiny, photo, recorded, tier, guidance):
    """Also where two groups of branches have the same shapes (turbo without image guidance)."""
    engines = [Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu", tier=tier) for _ in range(2)]
    recorded(engines[0])
    scales = {"guidance_scale": guidance[0], "image_guidance_scale": guidance[1]}
    first, second = (engine.edit(photo, "snow", **scales, **LATENT).images for engine in engines)
    assert np.array_equal(first, second)


def test_recorded_again_with_new_inputs(tiny, photo, recorded, fused):
    engine = Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu")
    engine.backend.device_loop = TorchLoop(engine.backend.device)
    memory = recorded(engine)
    for text, seed in (("snow", 3), ("rain", 4), ("snow", 3)):
        asked = LATENT | {"seed": seed}
        found = engine.edit(photo[:, ::-1].copy(), text, **asked).images
        assert np.array_equal(found, fused.edit(photo[:, ::-1].copy(), text, **asked).images)
        count = memory.captured
        assert count == 4  # text encoder, VAE encoder, conditioner, U-Net: once each


def test_the_choice_of_kernels_is_part_of_the_key(tiny, photo, recorded):
    engine = Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu")
    recorded(engine)
    found = engine.edit(photo, "snow", **LATENT).images
    with ops.reference_kernels():
        expected = engine.edit(photo, "snow", **LATENT).images
    assert not np.array_equal(found, expected)


def test_constants_are_copied_once_an_edit(tiny, photo, recorded, monkeypatch):
    engine = Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu")
    engine.backend.device_loop = TorchLoop(engine.backend.device)
    recorded(engine)
    engine.edit(photo, "snow", **LATENT)
    copies: dict[str, int] = {}
    fill = recordings.Recording.fill

    def counted(self, inputs):
        for name, tensor in inputs.items():
            copies[name] = copies.get(name, 0) + (name == "sample" or self.sources.get(name) is not tensor)
        fill(self, inputs)

    monkeypatch.setattr(recordings.Recording, "fill", counted)
    engine.edit(photo, "snow", **LATENT)
    each_step = {name for name, number in copies.items() if number == 4}
    assert each_step == {"sample", "time_bias"}
    assert all(number == 1 for name, number in copies.items() if name not in each_step)


def test_recordings_are_forgotten():
    memory = FakeMemory()
    call = Recorded(torch.nn.Identity(), torch.float32, memory)
    call.module = lambda x: (2 * x,)
    for length in (*range(1, recordings.RECORDINGS + 2), 1):
        assert torch.equal(call(x=torch.ones(length))[0], torch.full((length,), 2.0))
    assert len(call.recordings.values) == recordings.RECORDINGS
    assert memory.captured == recordings.RECORDINGS + 2


def test_threads_do_not_mix_their_inputs():
    call = Recorded(torch.nn.Identity(), torch.float32, FakeMemory())
    call.module = lambda x: (x + 1,)
    wrong = []

    def run(number):
        for _ in range(200):
            if not torch.equal(call(x=torch.full((64,), float(number)))[0], torch.full((64,), number + 1.0)):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_inputs_that_a_step_casts_are_stored_cast():
    call = Recorded(torch.nn.Identity(), torch.bfloat16, FakeMemory())
    seen = {}
    call.module = lambda **inputs: (seen.update(inputs), (inputs["sample"],))[1]
    call(sample=torch.ones(2), text_kv=torch.ones(2), guidance=torch.ones(1), branch=torch.zeros(2, dtype=torch.int64))
    assert {name: tensor.dtype for name, tensor in seen.items()} == {
        "sample": torch.float32, "text_kv": torch.bfloat16, "guidance": torch.float32, "branch": torch.int64,
    }  # fmt: skip


@pytest.mark.parametrize(("scheduler", "each_step"), [("euler", 0), ("euler_ancestral", 1), ("dpmpp_2m", 0)])
def test_copies_of_an_edit(tiny, photo, recorded, monkeypatch, scheduler, each_step):
    """From the card: the texts' states (two), source latents, final latents, image. To it at a step: fresh noise."""
    engine = Engine.from_pretrained(tiny, "torch", precision="float32", device="cpu")
    backend = engine.backend
    backend.device_loop = TorchLoop(backend.device)
    recorded(engine)
    copies = {"to": 0, "from": 0}

    def counted(direction, name):
        plain = getattr(backend, name)

        def call(value):
            copies[direction] += direction == "from" or not isinstance(value, torch.Tensor)
            return plain(value)

        monkeypatch.setattr(backend, name, call)

    counted("to", "to_device")
    counted("from", "to_numpy")
    numbers = []
    for steps in (3, 6):
        copies.update({"to": 0, "from": 0})
        engine.edit(photo, "snow", num_inference_steps=steps, scheduler=scheduler, resolution=0, seed=1)
        numbers.append(dict(copies))
    assert numbers[0]["from"] == numbers[1]["from"] == 5
    assert numbers[1]["to"] - numbers[0]["to"] == 3 * each_step
    assert numbers[0]["to"] - 3 * each_step == 17
