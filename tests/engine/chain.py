"""A chain of certificates of our own: a root, and a leaf that may sign Content Credentials."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANIZATION, COMMON = NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME


def make_chain(folder: Path, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION) -> tuple[Path, Path]:
    """Files of the chain and of the leaf's key, ES256."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", "root", root_key.public_key(), root_key, None)
    leaf = certificate("leaf", "root", key.public_key(), root_key, usage)
    folder.mkdir(exist_ok=True)
    (folder / "chain.pem").write_bytes(leaf.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(private_pem(key))
    return folder / "chain.pem", folder / "key.pem"


def private_pem(key, encryption=None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def certificate(subject, issuer, public, signer, usage):
    names = [
        x509.Name([x509.NameAttribute(kind, text) for kind, text in ((ORGANIZATION, "Tests"), (COMMON, name))])
        for name in (subject, issuer)
    ]
    now, is_root = datetime.datetime.now(datetime.UTC), usage is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer, hashes.SHA256())
