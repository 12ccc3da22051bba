"""Damaged images of every format: decoded, or refused with one error. `MRC_FUZZ` is the number of examples."""

import io
import os
import warnings

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.images import FORMATS, load_image
from mrc_edit.engine.pixels import MAX_PIXELS


def whole_files() -> list[bytes]:
    """One of each format, and with a colour profile and EXIF rotation where it has them."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = []
    for name in FORMATS:
        notes = {} if name in ("GIF", "BMP") else {"icc_profile": profile, "exif": exif}
        for options in ({}, notes) if notes else ({},):
            file = io.BytesIO()
            image.save(file, name, **options)
            files.append(file.getvalue())
    return files


FILES = whole_files()
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12)


@settings(
    max_examples=int(os.environ.get("MRC_FUZZ", 200)), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.sampled_from(FILES), CHANGES, st.booleans(), st.floats(0.1, 1))
def test_damaged_files(whole, changes, in_header, kept):
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * (min(len(data), 200) if in_header else len(data)))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_image(bytes(data[: int(kept * len(data))]))
        except MRCError as error:
            assert str(error)
        else:
            assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS


@settings(max_examples=int(os.environ.get("MRC_FUZZ", 200)), deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_file(data):
    try:
        load_image(data)
    except MRCError as error:
        assert str(error)
