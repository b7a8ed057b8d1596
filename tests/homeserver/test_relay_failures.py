import os
from pathlib import Path
from typing import Any

import pytest

from fedpresence.homeserver import exchange
from fedpresence.homeserver.relay import PassThrough, answered
from fedpresence.ids import ServerName
from fedpresence.listening import Certificates
from fedpresence.testing.certificates import ThrowawayCA
from tests.homeserver.listener import play
from tests.homeserver.played import an_answer
from tests.homeserver.relay_front import Front, a_request, with_front


def test_a_homeserver_that_is_down_is_said_to_be_at_once() -> None:
    """502 with an error that every client understands, and that a web page may read (P:9.3)."""

    async def story(front: Front) -> None:
        await front.homeserver.stop()
        client = await front.ask(a_request(b"GET", b"/_matrix/client/v3/x"))
        server = await front.ask(a_request(b"PUT", b"/_matrix/federation/x", body=b"{}"))

        assert (client.status, server.status) == (502, 502)
        assert b'"errcode":"M_UNKNOWN"' in client.body
        assert b"Access-Control-Allow-Origin: *" in client.head
        assert b"Access-Control-Allow-Origin" not in server.head

    with_front(story)


def test_an_upload_to_a_homeserver_that_is_down_is_refused_before_its_end() -> None:
    """Who sends 50 MB for nothing should know it soon; and the answer must arrive all the same."""

    async def story(front: Front) -> None:
        await front.homeserver.stop()
        client = await front.call(a_request(b"POST", b"/_matrix/media", b"Content-Length: 1000000"))
        await front.until(lambda: b"M_UNKNOWN" in client.received)
        client.send(b"x" * 1_000_000)
        await front.until(lambda: client.lost)

        assert client.status == 502
        assert b"Connection: close" in client.head

    with_front(story)


def test_a_homeserver_may_refuse_an_upload_before_its_end() -> None:
    """Its 413 reaches the client."""

    async def story(front: Front) -> None:
        front.homeserver.counting = True
        client = await front.call(a_request(b"POST", b"/_matrix/media", b"Content-Length: 1000000") + b"x")
        await front.until(lambda: front.homeserver.counted > 0)
        front.homeserver.connections[0].write(an_answer(b'{"errcode":"M_TOO_LARGE"}', b"413 Too Large"))
        await front.until(lambda: client.lost)

        assert client.status == 413
        assert client.body == b'{"errcode":"M_TOO_LARGE"}'
        await front.until(lambda: front.homeserver.connections[0].lost)

    with_front(story)


def test_a_slow_request_slows_no_other() -> None:
    """Two hundred long polls wait; the next request is answered all the same."""

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda seen: None if b"/slow" in seen.line else an_answer()
        waiting = [await front.call(a_request(b"GET", b"/_matrix/slow")) for _ in range(200)]
        await front.until(lambda: len(front.homeserver.seen) == 200)
        client = await front.ask(a_request())
        for each in waiting:
            each.leave()

        assert client.status == 200

    with_front(story)


def test_a_homeserver_that_does_not_answer_is_given_up_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait has an end: 504, and nothing is left open there."""
    monkeypatch.setattr(exchange, "ANSWER_TIMEOUT_S", 0.05)

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: None
        client = await front.ask(a_request())
        upload = await front.ask(a_request(b"POST", b"/_matrix/x", body=b"x" * 10_000))

        assert (client.status, upload.status) == (504, 504)
        await front.until(lambda: all(each.lost for each in front.homeserver.connections))

    with_front(story)


def test_an_answer_that_stops_half_way_is_given_up_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sees that it is not whole."""
    monkeypatch.setattr(exchange, "PIECE_TIMEOUT_S", 0.05)

    async def story(front: Front) -> None:
        front.homeserver.answers = lambda _: an_answer(b"x" * 100)[:-50]
        client = await front.ask(a_request())

        assert client.body == b"x" * 50

    with_front(story)


def test_connections_are_kept_and_their_end_costs_no_request() -> None:
    """A homeserver that restarts between two transactions must not look like an outage to the origin."""

    async def story(front: Front) -> None:
        await front.ask(a_request())
        await front.ask(a_request())
        assert len(front.homeserver.connections) == 1

        # The next request meets a connection that is closed before a byte of an answer.
        front.homeserver.answers = lambda _: b""
        front.homeserver.hangs_up_after_answering = True

        def come_back(_: object) -> bytes:
            front.homeserver.hangs_up_after_answering = False
            front.homeserver.answers = lambda _: an_answer(b"[2]")
            front.homeserver.connections[0].close()
            return b""

        front.homeserver.answers = come_back
        client = await front.ask(a_request(b"PUT", b"/elsewhere", body=b"{}"))

        assert (client.status, client.body) == (200, b"[2]")
        assert len(front.homeserver.connections) == 2

    with_front(story)


def test_a_post_is_never_sent_twice() -> None:
    """Nobody knows whether the first one was done."""

    async def story(front: Front) -> None:
        for uri in (b"/_matrix/x", b"/elsewhere"):  # streamed, and held in memory
            await front.ask(a_request())
            front.homeserver.seen.clear()
            front.homeserver.answers = lambda _: b""
            front.homeserver.hangs_up_after_answering = True
            client = await front.ask(a_request(b"POST", uri, body=b"{}"))
            front.homeserver.answers = lambda _: an_answer()
            front.homeserver.hangs_up_after_answering = False

            assert client.status == 502
            assert len(front.homeserver.seen) == 1

    with_front(story)


def test_a_renewed_authority_of_the_homeserver_is_trusted_once_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A homeserver in the next rack has its certificate from a private authority, which is renewed."""
    before, renewed = ThrowawayCA(tmp_path / "before"), ThrowawayCA(tmp_path / "renewed")
    key_file, certificate_file = renewed.issue(ServerName("127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(before.ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", os.fspath(tmp_path))

    def before_tls(reactor: Any) -> Front:
        front = Front(reactor)
        front.homeserver.certificates = Certificates(key_file, certificate_file)
        return front

    async def story(front: Front) -> None:
        assert (await front.ask(a_request())).status == 502
        renewed.ca_file.replace(before.ca_file)
        front.relay.renew_trust()
        assert (await front.ask(a_request())).status == 200

    play(before_tls, story)


def test_a_request_that_comes_back_to_us_is_no_longer_passed_on() -> None:
    """`homeserver.url` names the proxy that leads to us: one request would go round for ever."""

    async def story(front: Front) -> None:
        await front.ask(a_request(b"GET", b"/_matrix/x", b"X-Fedpresence: of-another-one"))
        (seen,) = front.homeserver.seen
        of_another, ours = seen.values(b"X-Fedpresence")
        assert of_another == b"of-another-one"

        back = await front.ask(a_request(b"GET", b"/_matrix/x", b"X-Fedpresence: " + ours))

        assert (back.status, len(front.homeserver.seen)) == (502, 1)

    with_front(story)


def test_a_bug_of_ours_is_a_502_and_not_a_silence() -> None:
    """The client tries again; the log has the traceback."""

    async def story(front: Front) -> None:
        class Wrong(PassThrough):
            def render(self, request: Any) -> int:
                async def fail() -> None:
                    raise ZeroDivisionError

                return answered(request, fail())

        front.site.resource = Wrong(front.relay)
        client = await front.ask(a_request())

        assert client.status == 502

    with_front(story)
