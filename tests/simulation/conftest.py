"""What tests of the simulation share."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.certificates import certificate_for


@pytest.fixture(scope="session")
def ssl_options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key whose signatures are always of the same length."""
    key_pair = certificate_for(rsa.generate_private_key(65537, 2048))
    return dict(key_pair.write(tmp_path_factory.mktemp("tls")))
