"""Content Credentials by a chain of our own: what validates, what does not, and what a signed file says."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

c2pa = pytest.importorskip("c2pa", reason="Content Credentials are signed by c2pa-python")
pytest.importorskip("cryptography", reason="the chain is made by cryptography")

from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: E402

from mrc_edit.core.errors import MRCError  # noqa: E402
from mrc_edit.engine import command  # noqa: E402
from mrc_edit.engine.provenance import COMPOSITE, TYPES, open_signer  # noqa: E402

spec = importlib.util.spec_from_file_location("chain", Path(__file__).parent / "chain.py")
chain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chain)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return chain.make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def sign(pair):
    return open_signer(*pair)


def image_file(image_format, seed=0):
    file = io.BytesIO()
    pixels = np.random.RandomState(seed).randint(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def read(content, image_format):
    """The active manifest of a file, what validation says of it, and all codes of failure."""
    with c2pa.Reader(TYPES[image_format], io.BytesIO(content)) as reader:
        results = reader.get_validation_results() or {}
        codes = {entry["code"] for entry in results.get("activeManifest", {}).get("failure", [])}
        return reader.get_active_manifest(), reader.get_validation_state(), codes


@pytest.mark.parametrize("image_format", TYPES)
def test_a_signed_file_is_valid_and_says_what_was_made_of_what(sign, image_format):
    content, source = image_file(image_format), image_file("JPEG", 1)
    signed = sign(content, image_format, source)
    manifest, state, codes = read(signed, image_format)
    assert state == "Valid" and codes <= {"signingCredential.untrusted"}
    (ingredient,) = manifest["ingredients"]
    assert (ingredient["relationship"], ingredient["format"]) == ("parentOf", "image/jpeg")
    (actions,) = [one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited"]
    assert actions[1]["digitalSourceType"] == COMPOSITE
    assert manifest["claim_generator_info"][0]["name"] == "mrc-edit"
    assert "thumbnail" not in json.dumps(manifest) and len(signed) - len(content) < 20_000
    pixels = [np.asarray(Image.open(io.BytesIO(file))) for file in (content, signed)]
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("image_format", TYPES)
def test_one_flipped_byte_is_invalid(sign, image_format):
    content = image_file(image_format)
    signed = bytearray(sign(content, image_format, content))
    place = bytes(signed).rindex(content[-40:-30])  # of the pixels
    signed[place] ^= 1
    _, state, codes = read(bytes(signed), image_format)
    assert state == "Invalid" and "assertion.dataHash.mismatch" in codes


def test_the_manifest_of_a_source_is_kept(sign):
    first = sign(image_file("PNG"), "PNG", image_file("JPEG"))
    manifest, state, _ = read(sign(image_file("PNG", 2), "PNG", first), "PNG")
    assert state == "Valid" and manifest["ingredients"][0]["active_manifest"]


def test_what_cannot_sign_is_one_readable_error_without_the_key(pair, tmp_path):
    certificates, key = pair
    other = chain.make_chain(tmp_path / "other")
    web = chain.make_chain(tmp_path / "web", ExtendedKeyUsageOID.SERVER_AUTH)
    small = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "locked.pem").write_bytes(chain.private_pem(small, BestAvailableEncryption(b"password")))
    broken = key.read_text().replace("A", "!")
    (tmp_path / "broken.pem").write_text(broken)
    for one, two, word in (
        (certificates, tmp_path / "none.pem", "none.pem cannot be read"),
        (key, key, "holds no PEM certificates"),
        (certificates, certificates, "holds no PEM private key"),
        (certificates, tmp_path / "broken.pem", "holds no PEM private key"),
        (certificates, tmp_path / "locked.pem", "has a password"),
        (certificates, other[1], "is not the key of the first certificate"),
        (*web, "chain.pem"),
    ):
        with pytest.raises(MRCError, match=word) as raised:
            open_signer(one, two)
        told = str(raised.value)
        lines = two.read_text().splitlines() if two.is_file() else []
        assert "\n" not in told and not any(line in told for line in lines)


def test_a_source_without_credentials_of_its_kind_is_refused(sign):
    with pytest.raises(MRCError, match="the source is BMP"):
        sign(image_file("PNG"), "PNG", image_file("BMP"))


def test_the_command_signs_what_it_writes(pair, tmp_path, monkeypatch, capsys):
    """With the parameters, which stay readable; and the same pixels as without."""
    (tmp_path / "photo.png").write_bytes(image_file("PNG"))
    words = ["mini", str(tmp_path / "photo.png"), "snow", "--steps", "1", "--resolution", "64", "--seed", "1"]
    for name, more in (("plain.png", []), ("signed.png", ["--provenance", *map(str, pair)])):
        monkeypatch.setattr(sys, "argv", ["mrc-edit", *words, "-o", str(tmp_path / name), *more])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 0, capsys.readouterr().err
    manifest, state, _ = read((tmp_path / "signed.png").read_bytes(), "PNG")
    assert state == "Valid" and manifest["ingredients"][0]["format"] == "image/png"
    plain, signed = (Image.open(tmp_path / name) for name in ("plain.png", "signed.png"))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(signed))
    assert plain.info["mrc-edit"] == signed.info["mrc-edit"]
    assert str(pair[1]) not in signed.info["mrc-edit"]


@pytest.mark.parametrize(
    ("source", "output", "told"), [("PNG", "out.tif", "an output is TIFF"), ("BMP", "out.png", "photo is BMP")]
)
def test_formats_that_cannot_be_signed_are_refused_before_a_model_loads(
    pair, tmp_path, monkeypatch, capsys, source, output, told
):
    (tmp_path / "photo").write_bytes(image_file(source))
    monkeypatch.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    words = ["mini", str(tmp_path / "photo"), "snow", "-o", str(tmp_path / output)]
    monkeypatch.setattr(sys, "argv", ["mrc-edit", *words, "--provenance", *map(str, pair)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and told in capsys.readouterr().err
