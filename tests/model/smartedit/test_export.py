"""An export of SmartEdit: the graphs run without PyTorch, what reads the instruction in it."""

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import relative_error
from mrc_edit.engine import Engine

OPTIONS = {"num_inference_steps": 2, "seed": 3, "resolution": 64, "output_type": "latent"}


@pytest.fixture(scope="module")
def exported(smartedit, traced_once, once):
    from mrc_edit.export.exporter import export

    return once("smartedit-exported", lambda folder: export(smartedit, folder))


@pytest.fixture(scope="module")
def picture():
    random = np.random.RandomState(0)
    return Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 96))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_export_edits_as_the_folder(smartedit, exported, picture, backend):
    eager = Engine.from_pretrained(smartedit, "eager").edit(picture, "snow", **OPTIONS).images
    engine = Engine.from_pretrained(exported, backend, precision="float32", reader=smartedit)
    assert relative_error(engine.edit(picture, "snow", **OPTIONS).images, eager) <= 1e-4
    one_branch = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
    eager = Engine.from_pretrained(smartedit, "eager").edit(picture, "snow", **OPTIONS, **one_branch).images
    assert relative_error(engine.edit(picture, "snow", **OPTIONS, **one_branch).images, eager) <= 1e-4


def test_readers_that_cannot_be(smartedit, exported, tiny, tiny_export, picture):
    with pytest.raises(MRCError, match="give reader=FOLDER, the folder it was made from"):
        Engine.from_pretrained(exported).edit(picture, "snow", **OPTIONS)
    with pytest.raises(MRCError, match="template without reader"):
        Engine.from_pretrained(exported, template=1)
    with pytest.raises(MRCError, match="another checkpoint"):
        Engine.from_pretrained(exported, reader=tiny)
    with pytest.raises(MRCError, match="no export of SmartEdit"):
        Engine.from_pretrained(tiny_export, reader=smartedit)
