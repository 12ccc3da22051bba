import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.images import FORMATS, load_image, to_array, to_pil, to_unit
from mrc_edit.engine.pixels import MAX_PIXELS


def saved(folder, image, name="image.png", **options):
    image.save(folder / name, **options)
    return folder / name


class Stream(io.RawIOBase):
    """A file that cannot be rewound, such as a download."""

    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.inner.readinto(buffer)


def test_round_trip(photo):
    np.testing.assert_array_equal(np.asarray(to_pil(to_array(load_image(photo)), (64, 128))), photo)


def test_path_bytes_file_pillow_and_array_agree(photo, tmp_path):
    path = saved(tmp_path, Image.fromarray(photo))
    with path.open("rb") as file:
        for given in (path, str(path), path.read_bytes(), file, Stream(path.read_bytes()), Image.open(path), photo):
            np.testing.assert_array_equal(np.asarray(load_image(given)), photo)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert load_image(saved(tmp_path, image, "turned.jpg", exif=exif)).size == (10, 20)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8100, 20000])  # the second is beyond Pillow's own limit
def test_bomb_is_refused_before_decoding(tmp_path, monkeypatch, side):
    path = saved(tmp_path, Image.new("1", (side, side)))
    assert path.stat().st_size < 100_000 < MAX_PIXELS < side * side
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MRCError, match="resize it first"):
        load_image(path)


@pytest.mark.parametrize(
    "image",
    [
        None,
        7,
        b"",
        b"bytes",
        io.StringIO("text"),
        Image.new("RGB", (0, 4)),
    ],
)
def test_what_is_no_image(image):
    with pytest.raises(MRCError, match="image"):
        load_image(image)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = saved(tmp_path, Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)), "a.jpg")
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("text.png", "half.jpg", "none.png", ".", "pipe.png", "nul\0.png", "long" * 1000):
        with pytest.raises(MRCError, match=r"not an image|damaged|does not exist|not a file"):
            load_image(tmp_path / name)


def test_a_lazily_opened_damaged_image_is_an_error(photo, tmp_path):
    whole = saved(tmp_path, Image.fromarray(photo)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MRCError, match="cannot be decoded"):
        load_image(Image.open(tmp_path / "half.png"))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_are_read(tmp_path, name):
    path = saved(tmp_path, Image.new("RGB", (16, 12), (200, 30, 30)), f"image.{name}", format=name)
    found = load_image(path)
    assert found.size == (16, 12) and np.abs(np.subtract(found.getpixel((8, 6)), (200, 30, 30))).max() <= 8


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def ico() -> bytes:
    """16×16 pixels by its own word, with a PNG of another size inside."""
    png = io.BytesIO()
    Image.new("L", (300, 300)).save(png, "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 8, len(png.getvalue()), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png.getvalue()


@pytest.mark.parametrize(("content", "name"), [(EPS, "EPS"), (ico(), "ICO")])
def test_other_formats_are_named_and_never_decoded(tmp_path, monkeypatch, content, name):
    """Whatever the ending says, and also as an image that the caller opened."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    opened = Image.open(path)
    monkeypatch.setattr(type(opened), "load", lambda *_: pytest.fail("decoded"))
    for given in (path, content, opened):
        with pytest.raises(MRCError, match=f"is {name}; JPEG, PNG"):
            load_image(given)


def test_any_error_of_a_reader_is_one_error(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (4, 4)))
    for error in (MemoryError(), struct.error("unpack"), IndexError("x"), RecursionError("deep"), KeyError("x")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
        with pytest.raises(MRCError, match=r"damaged|memory"):
            load_image(path)


def test_outputs_of_another_size():
    array = np.linspace(-1, 1, 3 * 32 * 48, dtype=np.float32).reshape(3, 32, 48)
    assert to_unit(array, (48, 32)).shape == (32, 48, 3)
    larger = to_unit(array, (96, 64))
    assert larger.shape == (64, 96, 3) and larger.dtype == np.float32 and larger.min() >= 0 and larger.max() <= 1
    drawn = np.asarray(to_pil(array, (96, 64)), dtype=np.float32) / 255
    assert np.abs(drawn - larger).max() < 0.02


def tiled(side) -> bytes:
    """A TIFF of 16×16 pixels in one tile of `side` squared."""
    data = zlib.compress(bytes(side * min(side, 1000)), 9)
    values = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 138, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", 0) + bytes(4) + data


def test_a_tile_counts_as_much_as_an_image(monkeypatch):
    assert load_image(tiled(64)).size == (16, 16)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MRCError, match="a tile of the image has 16384×16384 pixels"):
        load_image(tiled(16384))
