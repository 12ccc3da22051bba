"""What a source comes to, and the file of an edit."""

import io

import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.finishing import AS_IT_IS
from mrc_edit.serve.errors import code_of
from mrc_edit.serve.fields import Fields
from mrc_edit.serve.images import encode, source_of


@pytest.mark.parametrize(("kind", "side"), [("webp", 16_384), ("jpeg", 65_501)])
def test_sides_that_a_format_cannot_have_are_refused_before_the_edit(mini, kind, side):
    """Other formats have them; should one come through, the encoder's refusal is an error of ours, too."""
    file = io.BytesIO()
    Image.new("1", (side, 8)).save(file, "PNG")

    def source(kind):
        fields = Fields(prompt="x", output_format=kind, fit="pad", keep_size=True)
        return source_of(file.getvalue(), fields, mini.backend.geometry, 1_000_000)

    with pytest.raises(MRCError, match=f"{side:,}".replace(",", ",?")) as error:
        source(kind)
    assert (code_of(error.value), error.value.argument) == ("invalid_value", "output_format")
    assert source("png").data == file.getvalue()
    with pytest.raises(MRCError, match="cannot be written"):
        encode(Image.new("RGB", (side, 8)), kind, None, AS_IT_IS)
