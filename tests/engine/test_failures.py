"""Whatever a runtime raises is one MRCError that names the phase, and the engine edits on."""

import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.failures import as_error

QUICK = {"num_inference_steps": 2, "seed": 3, "output_type": "latent", "resolution": 0}
NO_MEMORY = [
    MemoryError("Unable to allocate 42.2 MiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Failed to allocate memory for requested buffer of size 9"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


@pytest.fixture(scope="module")
def mini():
    return Engine.from_pretrained("mini")


def fail_in(engine, monkeypatch, phase, error):
    def fail(*_, **__):
        raise error

    if phase != "unet":
        monkeypatch.setattr(engine.backend, phase, fail)
        return
    guided_unet = engine.backend.guided_unet

    def failing(*args, **rows):
        unet = guided_unet(*args, **rows)
        unet.full = fail
        return unet

    monkeypatch.setattr(engine.backend, "guided_unet", failing)


@pytest.mark.parametrize("phase", ["text_encoder", "vae_encoder", "conditioner", "unet", "vae_decoder"])
def test_a_phase_that_fails_is_named_and_the_engine_edits_on(mini, photo, phase):
    options = QUICK | {"output_type": "np"}
    before = mini.edit(photo, "snow", **options).images[0]
    for error in (*NO_MEMORY, RuntimeError("shapes differ\nat node 7"), TypeError("no such input")):
        with pytest.MonkeyPatch.context() as patch:
            fail_in(mini, patch, phase, error)
            word = (
                f"not enough memory for {phase}" if error in NO_MEMORY else f"{phase}.* failed .{type(error).__name__}"
            )
            with pytest.raises(MRCError, match=word) as caught:
                mini.edit(photo, "snow", **options)
            assert caught.value.__cause__ is error and "\n" not in str(caught.value)
    np.testing.assert_array_equal(mini.edit(photo, "snow", **options).images[0], before)


@pytest.mark.parametrize("place", ["request.framed", "engine.make_plan", "engine.to_array"])
def test_memory_that_runs_out_between_the_phases(mini, photo, monkeypatch, place):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(f"mrc_edit.engine.{place}", fail)
    with pytest.raises(MRCError, match="not enough memory"):
        mini.edit(photo, "snow", **QUICK)


def test_an_error_of_a_callback_is_its_own(mini, photo):
    def fail(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        mini.edit(photo, "snow", callback_on_step_end=fail, **QUICK)


def test_a_server_tells_its_own_errors_as_they_are():
    own = MRCError("own")
    assert as_error(own) is own
    for error in (SystemExit(3), StopIteration(), KeyboardInterrupt()):
        failure = as_error(error)
        assert type(error).__name__ in str(failure) and failure.__cause__ is error
