import subprocess
import sys

import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine

pytest.importorskip("openvino", reason="OpenVINO is not installed")
from mrc_edit.engine.backends.openvino import CORE, SHAPES, part_text

LATENT = {"num_inference_steps": 3, "resolution": 0, "output_type": "latent", "seed": 3}


def has_bfloat16() -> bool:
    return "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_float32_is_the_eager_edit(tiny_export, eager, photo, error):
    engine = Engine.from_pretrained(tiny_export, "openvino", precision="float32")
    for text, size in (("snow", photo), ("rain", photo[:64])):  # another size is compiled anew
        assert error(engine.edit(size, text, **LATENT).images, eager.edit(size, text, **LATENT).images) <= 1e-4


def test_the_precision_is_what_the_cpu_has(tiny_export):
    engine = Engine.from_pretrained(tiny_export, "openvino")
    assert engine.backend.precision == ("bfloat16" if has_bfloat16() else "float32")


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_bfloat16_is_near(tiny_export, eager, photo, error):
    engine = Engine.from_pretrained(tiny_export, "openvino", precision="bfloat16")
    assert 1e-4 < error(engine.edit(photo, "snow", **LATENT).images, eager.edit(photo, "snow", **LATENT).images) < 0.1


@pytest.mark.skipif(has_bfloat16(), reason="this CPU multiplies bfloat16")
def test_bfloat16_is_refused_where_the_cpu_has_none(tiny_export):
    with pytest.raises(MRCError, match="no instructions"):
        Engine.from_pretrained(tiny_export, "openvino", precision="bfloat16")


def test_no_step_copies_the_text(tiny_export):
    """Every key and value is an input of its own; nothing else is left of the split."""
    backend = Engine.from_pretrained(tiny_export, "openvino").backend
    model = backend.graphs["unet"].clone()
    width = next(port for port in model.inputs if port.any_name == "text_kv").partial_shape[2].get_length()
    part_text(model)
    parts = [port for port in model.inputs if "text_kv" in port.any_name]
    assert [port.any_name for port in parts] == [f"text_kv.{i}" for i in range(len(parts))] and len(parts) > 1
    assert sum(port.partial_shape[2].get_length() for port in parts) == width


CLOSED = """
import signal, subprocess, sys
from mrc_edit.engine import Engine
first, second = (Engine.from_pretrained(sys.argv[1], "openvino") for _ in range(2))
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_a_signal_is_handled_after_engines_were_closed(tiny_export):
    """In the order that they were opened, which two plugins' signal stacks do not survive."""
    done = subprocess.run([sys.executable, "-c", CLOSED, tiny_export], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.slow
def test_a_plain_model_edits(plain, plain_export, photo, error):
    engine = Engine.from_pretrained(plain_export, "openvino", precision="float32")
    expected = Engine.from_pretrained(plain).edit(photo, "snow", **LATENT).images
    assert error(engine.edit(photo, "snow", **LATENT).images, expected) <= 1e-4


@pytest.mark.parametrize(("precision", "word"), [("float16", "float32, bfloat16 or int8"), ("int8", "--int8")])
def test_what_is_not_there_is_refused(tiny_export, precision, word):
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained(tiny_export, "openvino", precision=precision)


def test_only_the_last_shapes_are_kept_compiled(photo):
    """However many sizes, batches and steps were asked for; a size that comes back gives the same edit."""
    engine = Engine.from_pretrained("mini", "openvino", precision="float32")

    def edit(width, steps):
        return engine.edit(photo[:64, :width], "snow", **LATENT | {"num_inference_steps": steps}).images

    first = edit(64, 1)
    for steps, width in enumerate((16, 32, 48), start=1):
        edit(width, steps)
    assert all(len(models.values) <= SHAPES for models in engine.backend.models.values())
    np.testing.assert_array_equal(edit(64, 1), first)


@pytest.mark.parametrize("shapes", [0, 1.5, True])
def test_bad_numbers_of_shapes(shapes):
    with pytest.raises(MRCError, match="shapes"):
        Engine.from_pretrained("mini", "openvino", shapes=shapes)


@pytest.mark.parametrize(
    ("problem", "word"), [("Check failed\nx", "refuses .*unet"), ("std::bad_alloc", "not enough memory")]
)
def test_a_graph_that_does_not_compile_is_one_error(photo, monkeypatch, problem, word):
    engine = Engine.from_pretrained("mini", "openvino")

    def fail(graph, shapes):
        raise RuntimeError(problem)

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "reshaped", fail)
        with pytest.raises(MRCError, match=word.replace("unet", "text_encoder")):
            engine.edit(photo[:64], "snow", **LATENT)
    assert engine.edit(photo[:64], "snow", **LATENT).images.size
