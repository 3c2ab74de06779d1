"""A certificate to try the mark with: ``python -m sld_mark_provenance.trial FOLDER``. Nobody trusts what it signs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sldcore.documents import write_bytes_atomically

AUTHORITY: Final = "sldcore trial authority"
SIGNER: Final = "sldcore trial signer"
_PEM: Final = serialization.Encoding.PEM


def write_chain(folder: Path, days: int = 30) -> dict[str, str]:
    """Write ``chain.pem`` and ``key.pem``, valid for so many more days, and return them as options of the mark."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate(AUTHORITY, root_key, root_key, days)
    leaf = _certificate(SIGNER, key, root_key, days)
    private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_bytes_atomically(folder / "chain.pem", leaf.public_bytes(_PEM) + root.public_bytes(_PEM))
    write_bytes_atomically(folder / "key.pem", private)
    (folder / "key.pem").chmod(0o600)
    return {"certificate": str(folder / "chain.pem"), "key": str(folder / "key.pem")}


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, days: int
) -> x509.Certificate:
    now, public, root = datetime.now(UTC), key.public_key(), key is issuer
    usage = x509.KeyUsage(
        digital_signature=not root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=root,
        crl_sign=root,
        encipher_only=False,
        decipher_only=False,
    )
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    built = (
        x509.CertificateBuilder(_name(AUTHORITY), _name(name), public, x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issued_by, critical=False)
    )
    if not root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        built = built.add_extension(purpose, critical=False)
    return built.sign(issuer, hashes.SHA256())


def _name(name: str) -> x509.Name:
    common, organisation = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
    return x509.Name([x509.NameAttribute(common, name), x509.NameAttribute(organisation, "sldcore")])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m sld_mark_provenance.trial FOLDER")
    print(write_chain(Path(sys.argv[1])))
