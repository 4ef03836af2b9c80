"""A self-signed certificate for loopback."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "strict_pubsub(tls=True) needs cryptography: pip install 'pulsecart[testing]'", name=error.name
    ) from error

__all__ = ["Certificate", "new_certificate"]


@frozen
class Certificate:
    """The PEM of a key and of its certificate, and the files that they are in."""

    key: bytes
    chain: bytes
    key_file: str
    chain_file: str


def new_certificate(folder: str) -> Certificate:
    """Make a certificate for localhost and 127.0.0.1 that is valid for a day, and write it to a folder."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = signed.public_bytes(serialization.Encoding.PEM)
    key_file, chain_file = Path(folder, "key.pem"), Path(folder, "roots.pem")
    key_file.write_bytes(key)
    chain_file.write_bytes(chain)
    return Certificate(key, chain, str(key_file), str(chain_file))
