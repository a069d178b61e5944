"""A server's key and certificate for tests of TLS, made by openssl(1)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HOST = "localhost"


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Paths of a new key, and of a certificate for `HOST` that vouches for itself.

    Skips the test where there is no openssl.
    """
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = directory / "server-key.pem", directory / "ca-cert.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return key, certificate
