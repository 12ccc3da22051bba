"""Content Credentials (C2PA): a signed record in the file of an edit of what was made of what.

It names the source by its hash, and says that a trained model edited it. It holds neither instruction nor settings.
"""

import io
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..core.console import DISTRIBUTION, VERSION
from ..core.errors import MRCError, reason
from .images import file_format

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}  # of edits, by Pillow's names
SOURCES = TYPES | {"GIF": "image/gif", "TIFF": "image/tiff", "AVIF": "image/avif"}
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
AGENT = {"name": DISTRIBUTION, "version": VERSION.partition(" ")[2]}
MANIFEST = {
    "claim_generator_info": [AGENT],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {"actions": [{"action": "c2pa.edited", "digitalSourceType": COMPOSITE, "softwareAgent": AGENT}]},
        }
    ],
}
# Thumbnails would be most of the file, and the hashes of C2PA need none; nothing is asked of any other machine
SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

Sign = Callable[[bytes, str, bytes], bytes]  # an edit's file, Pillow's name of its format, the source's file


def open_signer(certificates: str | Path, key: str | Path) -> Sign:
    """A function that signs the file of an edit; threads may share it.

    Args:
        certificates: PEM, that of the key first, then those that signed it.
        key: PEM, without a password.

    Raises:
        MRCError: c2pa-python is not installed, or the two cannot sign; no message shows anything of the key.
    """
    if find_spec("c2pa") is None:
        raise MRCError("--provenance needs c2pa-python: pip install 'mrc-edit[provenance]'")
    import c2pa

    chain, secret = read_pem(certificates), read_pem(key)
    algorithm = algorithm_of(chain, secret, certificates, key)
    lock = threading.Lock()

    def sign(content: bytes, edit_format: str, source: bytes) -> bytes:
        found = source_format(io.BytesIO(source), "the source")
        signed = io.BytesIO()
        try:
            with lock, c2pa.Builder(MANIFEST, context) as builder:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
                builder.add_ingredient({"relationship": "parentOf"}, SOURCES[found], io.BytesIO(source))
                builder.sign(signer, TYPES[edit_format], io.BytesIO(content), signed)
        except c2pa.C2paError as error:
            raise MRCError(f"the edit cannot be signed with {certificates} ({reason(error)}); check both") from None
        return signed.getvalue()

    try:
        context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, secret, None))
    except c2pa.C2paError as error:
        raise MRCError(f"{certificates} and {key} cannot sign ({reason(error)}); give a chain for C2PA") from None
    trial = io.BytesIO()
    Image.new("RGB", (8, 8)).save(trial, "PNG")
    sign(trial.getvalue(), "PNG", trial.getvalue())  # what a certificate lacks shows here, before any edit
    return sign


def check_signed_formats(formats: Iterable[str]) -> None:
    """Refuse outputs that cannot be signed; Pillow's names.

    Raises:
        MRCError: there is one.
    """
    if others := [name for name in formats if name not in TYPES]:
        raise MRCError(f"--provenance signs {', '.join(TYPES)}, an output is {others[0]}; choose one of these")


def source_format(file: BinaryIO, title: str) -> str:
    """The format of the source of an edit that is to be signed, by Pillow's name.

    Args:
        title: of the source in messages.

    Raises:
        MRCError: Content Credentials cannot name a file of that format.
    """
    found = file_format(file)
    if found not in SOURCES:
        raise MRCError(f"{title} is {found}, for which there are no Content Credentials; give PNG or JPEG")
    return found


def read_pem(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MRCError(f"{path} cannot be read ({error.strerror}); give a PEM file to --provenance") from None


def algorithm_of(chain: bytes, secret: bytes, certificates: str | Path, key: str | Path) -> str:
    """C2PA's name of the algorithm of a private key.

    Raises:
        MRCError: what is no PEM or has a password, a key of another certificate, or one that C2PA does not take.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        first = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise MRCError(f"{certificates} holds no PEM certificates; give the chain, that of the key first") from None
    try:
        private = load_pem_private_key(secret, None)
    except TypeError:
        raise MRCError(f"{key} has a password; give a key without one, in a file that you alone can read") from None
    except Exception:  # its text could show bytes of the key
        raise MRCError(f"{key} holds no PEM private key; give that of {certificates}") from None
    if private.public_key() != first.public_key():
        raise MRCError(
            f"{key} is not the key of the first certificate in {certificates}; give the two that belong together"
        )
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in CURVES:
        return CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise MRCError(f"{key} is of a kind that C2PA does not sign with; give one of P-256, P-384, P-521, Ed25519 or RSA")
