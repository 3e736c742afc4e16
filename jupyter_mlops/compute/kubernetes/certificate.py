"""A certificate of our own making: whoever is to trust it is told its fingerprint."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ...core.resources.compute import host_and_port
from ...runtime import jobfolder, route

#: Days for which it is good.
DAYS = 3650


def load(path: Path, address: str) -> tuple[ssl.SSLContext, str]:
    """TLS of our side, and the fingerprint; the certificate is made when there is none that can be read.

    Args:
        path: of the file with key and certificate.
        address: ``HOST:PORT`` that stands in a new one.

    Raises:
        OSError: it cannot be kept.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs us far more than who asks for it
    try:
        context.load_cert_chain(path)
    except OSError:  # ssl.SSLError is one
        jobfolder.private_folder(str(path.parent))
        jobfolder.write_file(str(path), make(address))
        context.load_cert_chain(path)
    pem = path.read_text("ascii")
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE-----"):])
    return context, route.fingerprint(der)


def make(address: str) -> bytes:
    """A key and a certificate that nobody has signed, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "jupyter-mlops")])
    host, _ = host_and_port(address)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
    return private + certificate.public_bytes(serialization.Encoding.PEM)
