from pathlib import Path

import pytest

from fedpresence.errors import ConfigError
from fedpresence.outbound.tls import MAX_CONTEXTS, TlsPolicy
from tests.outbound.network import Authority


@pytest.mark.parametrize(
    "text",
    [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_a_ca_file_that_is_no_good_is_the_operators_to_mend(tmp_path: Path, text: str | None) -> None:
    """A wrong file must say so at the start, and not trust nobody in silence."""
    ca_file = tmp_path / "ca.pem"
    if text is not None:
        ca_file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        TlsPolicy(ca_file=ca_file)

    assert caught.value.problems[0].key == "federation.ca_file"


def test_contexts_are_kept_for_the_most_recent_names(authority: Authority) -> None:
    """A context costs milliseconds and half a megabyte: neither each time nor for ever."""
    policy = TlsPolicy(ca_file=authority.ca_file)
    first = policy.creator_for("first.test")
    assert policy.creator_for("first.test") is first

    for number in range(MAX_CONTEXTS):
        policy.creator_for(f"{number}.test")

    assert policy.creator_for("first.test") is not first
