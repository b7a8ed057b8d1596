import socket

import pytest

from fedpresence.outbound.handshake import UNACKNOWLEDGED_MS, give_up_early


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT")
def test_a_connection_whose_line_was_cut_is_given_up_within_seconds() -> None:
    """A transaction in flight when packets begin to vanish would hold up the next for a minute (issue 4)."""
    with socket.socket() as connected:
        give_up_early(connected)

        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_MS
    assert UNACKNOWLEDGED_MS < 30_000
