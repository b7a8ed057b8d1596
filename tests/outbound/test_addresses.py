import pytest

from fedpresence.config_model import DEFAULT_BLOCKED_NETWORKS
from fedpresence.outbound.addresses import BlockedNetworks

BLOCKED = BlockedNetworks(DEFAULT_BLOCKED_NETWORKS)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "127.0.0.1", "127.255.255.255", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "100.64.0.1", "192.0.0.1", "169.254.169.254", "192.88.99.1", "198.18.0.1", "192.0.2.1",
        "198.51.100.1", "203.0.113.1", "224.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fdff::1", "2001:db8::1", "ff02::1", "fec0::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::a00:1",
        "2002:7f00:1::", "2002:a00:1::1",
    ],
)  # fmt: skip
def test_private_addresses_are_blocked_in_all_their_forms(address: str) -> None:
    """Any server name may resolve to our own network (Z-5)."""
    assert BLOCKED.block(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_public_addresses_are_not(address: str) -> None:
    """A rule that is too wide cuts off the federation."""
    assert not BLOCKED.block(address)


@pytest.mark.parametrize("text", ["", "127.1", "0x7f.1", "2130706433", "localhost"])
def test_what_is_no_address_is_blocked(text: str) -> None:
    """Names and numeric forms must be resolved first (Z-5)."""
    assert BLOCKED.block(text)


def test_an_operator_may_block_nothing() -> None:
    """Test networks live on loopback."""
    assert not BlockedNetworks([]).block("127.0.0.1")
