import gc
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from fedpresence.errors import DeliveryFailed
from fedpresence.ids import ServerName
from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.rig.faults import NO_FAULTS, Faults
from fedpresence.testing.rig.link import RETRY_AFTER_MS
from fedpresence.testing.rig.wirelog import UNKNOWN
from tests.asynchronous import failure_of, result_of
from tests.testing.rig.links import HERE, SEND, THERE, Scene

X_MATRIX = (
    'X-Matrix origin="{}",destination="there.test",key="ed25519:a",sig="' + "A" * 86 + '"'
)  # of nobody: what it claims is enough here


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> ThrowawayCA:
    return ThrowawayCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(ca: ThrowawayCA) -> tuple[Path, Path]:
    return ca.issue(THERE)


@pytest.fixture
def scene(ca: ThrowawayCA, certificate: tuple[Path, Path]) -> Iterator[Scene]:
    scene = Scene(ca, certificate)
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None and event["log_level"] >= LogLevel.error:
            failures.append(event)

    publisher: Any = globalLogPublisher
    publisher.addObserver(observe)
    yield scene
    gc.collect()  # a Deferred that failed unheard says so when it goes
    publisher.removeObserver(observe)
    assert failures == []
    assert scene.clock.getDelayedCalls() == []


# --- without faults ----------------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent(scene: Scene) -> None:
    """What a signature covers must not change on the way, or every request would be refused."""
    scene.link()
    uri = SEND + "1%2f2?a=b&&c="

    answer = result_of(
        scene.sender.begin("PUT", uri, b'{"a": 1.50 }', headers={"Authorization": "X-Matrix a=b"})
    )

    (heard,) = scene.receiver.heard
    assert (heard.method, heard.uri, heard.body) == (b"PUT", uri.encode(), b'{"a": 1.50 }')
    assert heard.headers["authorization"] == ["X-Matrix a=b"]
    assert heard.headers["host"] == ["there.test"]
    assert heard.headers["content-length"] == ["12"]
    assert answer.status == 200
    assert answer.body == b'{"n":1}'
    assert answer.headers[b"x-odd"] == [b"kept"]


def test_each_sender_has_an_address_of_its_own(scene: Scene) -> None:
    """Limits count by address: all servers of a rig come from 127.0.0.1, and would share them."""
    scene.link(source="192.0.2.7")

    result_of(scene.sender.begin("GET", "/", headers={"X-Forwarded-For": "198.51.100.1"}))

    assert scene.receiver.heard[0].headers["x-forwarded-for"] == ["198.51.100.1", "192.0.2.7"]


@pytest.mark.parametrize("status", [201, 204, 401, 429, 500])
def test_an_answer_comes_back_as_it_was_given(scene: Scene, status: int) -> None:
    """The sender must meet every status that the receiver has."""
    scene.link()
    scene.receiver.status = status

    answer = result_of(scene.sender.put("1"))

    assert answer.status == status
    assert scene.wire.transactions()[0].status == status


def test_connections_are_kept(scene: Scene) -> None:
    """Two TLS handshakes for each of ten thousand transactions would be most of a run."""
    scene.link()

    for number in range(5):
        result_of(scene.sender.put(str(number)))

    assert scene.network.opened == 2


def test_when_the_receiver_closes_its_connection_the_sender_sees_it_closed(scene: Scene) -> None:
    """A sender that thinks a connection stands where there is none would meet errors of the rig's own."""
    scene.link()
    scene.receiver.closes = True

    result_of(scene.sender.put("1"))
    scene.network.settle()

    assert scene.sender.connections.kept == 0
    assert result_of(scene.sender.put("2")).status == 200


def test_when_the_sender_closes_its_connection_the_receiver_sees_it_closed(scene: Scene) -> None:
    """What a peer that gives up does to us is part of what is tested."""
    scene.link()
    scene.receiver.silent = True
    sent = scene.sender.put("1")

    sent.cancel()
    scene.network.settle()

    failure_of(sent, Exception)
    assert scene.receiver.left == [SEND.encode() + b"1"]
    (recorded,) = scene.wire.transactions()
    assert (recorded.status, recorded.note) == (None, "failed: its sender left")


def test_a_body_of_megabytes_passes(scene: Scene) -> None:
    """The receiver's limits are to be met, not ours."""
    scene.link()
    scene.receiver.padding = 500_000
    body = b"[" + b" " * 3_000_000 + b"]"

    answer = result_of(scene.sender.put("1", body))

    assert scene.receiver.heard[0].body == body
    assert len(answer.body) > 500_000


def test_a_receiver_that_is_not_who_it_should_be_gets_nothing(
    scene: Scene, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """With /external the rig speaks to servers that are not its own: it must know them, or say why not."""
    scene.ca = ThrowawayCA(tmp_path)
    scene.link()

    failure_of(scene.sender.put("1"), DeliveryFailed)

    assert scene.receiver.heard == []
    assert "no answer [failed: SSLCertVerificationError: " in scene.wire.text()
    assert "certificate verify failed" in scene.wire.text()


# --- the wire log ------------------------------------------------------------------------------------


def test_transactions_are_recorded_and_nothing_else(scene: Scene) -> None:
    """A key fetch between two transactions would only be in the way of whoever counts."""
    scene.link()
    scene.clock.advance(12.5)

    result_of(scene.sender.put("t1", b'{"edus": []}'))
    result_of(scene.sender.begin("GET", "/_matrix/key/v2/server"))

    (recorded,) = scene.wire.transactions()
    assert (recorded.origin, recorded.destination, recorded.txn_id) == (HERE, THERE, "t1")
    assert (recorded.sent_ms, recorded.answered_ms, recorded.status) == (12_500, 12_500, 200)
    assert recorded.body == {"edus": []}


# --- down --------------------------------------------------------------------------------------------


def test_a_path_that_is_down_refuses_connections_and_resets_those_that_stand(scene: Scene) -> None:
    """An outage looks like this to a sender: surely not heard (F:X-3)."""
    link = scene.link()
    scene.receiver.silent = True
    waiting = scene.sender.put("1")

    link.faults = Faults(down=True)
    scene.network.settle()

    failure_of(waiting, DeliveryFailed)
    assert not failure_of(scene.sender.put("2"), DeliveryFailed).heard
    assert scene.receiver.txn_ids == ["1"]


def test_a_path_is_up_again_at_once(scene: Scene) -> None:
    """Healing is part of every story about an outage."""
    link = scene.link()

    link.faults = Faults(down=True)
    link.faults = NO_FAULTS
    scene.run(link.settled())

    assert result_of(scene.sender.put("1")).status == 200


def test_a_path_to_a_server_that_does_not_listen_refuses_like_it(scene: Scene) -> None:
    """A stopped server and a server behind a broken proxy are two different things to a sender."""
    link = scene.link()
    result_of(scene.sender.put("1"))

    scene.receiver.close()
    link.refresh()
    scene.network.settle()

    assert not failure_of(scene.sender.put("2"), DeliveryFailed).heard
    scene.receiver.listen()
    link.refresh()
    assert result_of(scene.sender.put("3")).status == 200


def test_a_stopped_path_leaves_nothing_behind(scene: Scene) -> None:
    """Hundreds of rigs are started in one run of tests."""
    link = scene.link()
    link.faults = Faults(latency_ms=1000)
    waiting = scene.sender.put("1")

    scene.run(link.stop())

    failure_of(waiting, DeliveryFailed)
    assert sorted(scene.network.ports) == [8448]
    assert scene.clock.getDelayedCalls() == []


# --- delay and loss ----------------------------------------------------------------------------------


def test_a_delayed_request_arrives_by_the_rigs_clock(scene: Scene) -> None:
    """Nothing in a rig waits in real time."""
    scene.link().faults = Faults(latency_ms=1500)

    sent = scene.sender.put("1")
    scene.pass_ms(1499)
    assert scene.receiver.heard == []
    scene.pass_ms(1)

    assert result_of(sent).status == 200
    (recorded,) = scene.wire.transactions()
    assert (recorded.sent_ms, recorded.answered_ms) == (0, 1500)


def test_a_delayed_request_arrives_although_its_sender_gave_up(scene: Scene) -> None:
    """This is how old news overtakes new: the receiver must cope."""
    scene.link().faults = Faults(latency_ms=90_000)
    sent = scene.sender.put("1")

    sent.cancel()
    failure_of(sent, Exception)
    scene.pass_ms(90_000)

    assert scene.receiver.txn_ids == ["1"]
    (recorded,) = scene.wire.transactions()
    assert recorded.status is None and recorded.note.endswith("failed: its sender left")


def test_a_delayed_request_that_nobody_takes_says_so_although_its_sender_gave_up(scene: Scene) -> None:
    """That its sender left is not why it did not arrive."""
    scene.link().faults = Faults(latency_ms=1000)
    sent = scene.sender.put("1")
    scene.receiver.close()

    sent.cancel()
    failure_of(sent, Exception)
    scene.pass_ms(1000)

    assert "failed: " in scene.wire.transactions()[0].note
    assert "sender" not in scene.wire.transactions()[0].note


@pytest.mark.parametrize("latency_ms", [0, 1000])
def test_what_is_on_its_way_when_the_path_goes_down_is_lost(scene: Scene, latency_ms: int) -> None:
    """A broken line does not deliver later what it had in flight, and the log says what became of it."""
    link = scene.link()
    link.faults = Faults(latency_ms=latency_ms)
    scene.receiver.silent = True
    sent = scene.sender.put("1")

    link.faults = Faults(down=True)
    link.faults = NO_FAULTS
    scene.pass_ms(1000)

    failure_of(sent, DeliveryFailed)
    assert scene.receiver.txn_ids == ([] if latency_ms else ["1"])
    (recorded,) = scene.wire.transactions()
    assert recorded.status is None and recorded.note.endswith("failed: the path was shut")


@pytest.mark.parametrize(
    ("faults", "arrived"),
    [(Faults(drop_request=1), []), (Faults(drop_response=1), ["1"]), (Faults(hang=True), [])],
)
def test_a_loss_is_silence_to_the_sender_whether_it_was_heard_or_not(
    scene: Scene, faults: Faults, arrived: list[str]
) -> None:
    """The sender cannot know which it was; both must end in the same state once it tries again."""
    scene.link().faults = faults

    sent = scene.sender.put("1")
    scene.pass_ms(3_600_000)

    assert not sent.called
    assert scene.receiver.txn_ids == arrived
    (recorded,) = scene.wire.transactions()
    assert (recorded.status, recorded.answered_ms) == (None, None)
    sent.cancel()
    scene.network.settle()
    failure_of(sent, Exception)


def test_after_the_receivers_own_timeout_a_lost_answer_is_still_silence(scene: Scene) -> None:
    """That the connection behind us ends must not tell the sender what it could not know."""
    scene.link().faults = Faults(drop_response=1)
    scene.receiver.closes = True

    sent = scene.sender.put("1")

    assert not sent.called
    assert scene.receiver.txn_ids == ["1"]
    sent.cancel()
    scene.network.settle()
    failure_of(sent, Exception)


# --- duplication and reordering ----------------------------------------------------------------------


def test_a_duplicate_arrives_twice_and_the_first_answer_counts(scene: Scene) -> None:
    """A transaction may be processed once only, however often it comes (F:R-1)."""
    scene.link().faults = Faults(duplicate=1)

    answer = result_of(scene.sender.put("1"))

    assert answer.body == b'{"n":1}'
    assert scene.receiver.txn_ids == ["1", "1"]
    first, second = scene.wire.transactions()
    assert (first.duplicate, first.status) == (False, 200)
    assert (second.duplicate, second.status) == (True, None)


def test_a_transaction_that_is_held_back_arrives_after_the_next(scene: Scene) -> None:
    """Reordering between transactions: old news must not undo new."""
    link = scene.link()
    link.faults = Faults(reorder=1)
    overtaken = scene.sender.put("1")
    link.faults = NO_FAULTS

    answer = result_of(scene.sender.put("2"))

    assert answer.body == b'{"n":1}'
    assert scene.receiver.txn_ids == ["2", "1"]
    assert not overtaken.called
    assert [(each.txn_id, each.status) for each in scene.wire.transactions()] == [("1", None), ("2", 200)]
    overtaken.cancel()
    scene.network.settle()
    failure_of(overtaken, Exception)


def test_where_every_transaction_may_be_held_back_every_other_one_is(scene: Scene) -> None:
    """`reorder: 1` must swap neighbours; to hold all would only be another way of being down."""
    scene.link().faults = Faults(reorder=1)

    scene.sender.put("1").addErrback(lambda _: None)
    assert result_of(scene.sender.put("2")).status == 200

    assert scene.receiver.txn_ids == ["2", "1"]


def test_other_requests_are_never_held_back(scene: Scene) -> None:
    """A key that comes after the transaction it is for is no reordering of transactions."""
    scene.link().faults = Faults(reorder=1)

    assert result_of(scene.sender.begin("GET", "/_matrix/key/v2/server")).status == 200


def test_chance_follows_the_seed(ca: ThrowawayCA, certificate: tuple[Path, Path]) -> None:
    """A run that failed must fail again with the same seed."""
    doubled = []
    for seed in (1, 1, 2):
        scene = Scene(ca, certificate, random=Random(seed))
        scene.link().faults = Faults(duplicate=0.5)
        for number in range(20):
            result_of(scene.sender.put(str(number)))
        doubled.append([each.txn_id for each in scene.wire.transactions() if each.duplicate])

    assert doubled[0] == doubled[1] != doubled[2]
    assert 0 < len(doubled[0]) < 20


# --- answers that are made up ------------------------------------------------------------------------


def test_a_status_is_answered_on_the_way(scene: Scene) -> None:
    """A proxy in front of a server that is away answers so."""
    scene.link().faults = Faults(status=503)

    answer = result_of(scene.sender.put("1"))

    assert answer.status == 503
    assert json.loads(answer.body)["errcode"] == "M_UNKNOWN"
    assert scene.receiver.heard == []
    assert scene.wire.transactions()[0].status == 503


def test_429_says_when_to_come_again(scene: Scene) -> None:
    """A sender that honours it waits, and no longer."""
    scene.link().faults = Faults(status=429)

    body = json.loads(result_of(scene.sender.put("1")).body)

    assert body["errcode"] == "M_LIMIT_EXCEEDED"
    assert body["retry_after_ms"] == RETRY_AFTER_MS


def test_success_is_made_up_for_transactions_alone(scene: Scene) -> None:
    """A 200 for a transaction nobody saw is a black hole; a 200 without keys is only garbage."""
    scene.link().faults = Faults(status=200)

    transaction = result_of(scene.sender.put("1"))
    other = result_of(scene.sender.begin("GET", "/_matrix/key/v2/server"))

    assert transaction.body == b'{"pdus":{}}'
    assert other.body == b'{"n":1}'
    assert scene.receiver.txn_ids == []


def test_garbage_is_no_http_at_all(scene: Scene) -> None:
    """Whoever answers on the port may not be a homeserver."""
    scene.link().faults = Faults(garbage=True)

    failure_of(scene.sender.put("1"), DeliveryFailed)

    assert scene.receiver.heard == []
    assert scene.wire.transactions()[0].status is None


def test_garbage_with_a_status_has_a_body_that_is_no_json(scene: Scene) -> None:
    """Proxies answer with HTML, and worse."""
    scene.link().faults = Faults(garbage=True, status=200)

    answer = result_of(scene.sender.put("1"))

    assert answer.status == 200
    with pytest.raises(ValueError):
        json.loads(answer.body)


def test_an_answer_that_trickles_comes_byte_by_byte(scene: Scene) -> None:
    """A peer that is almost dead holds a sender longest: each byte says that it lives."""
    scene.link().faults = Faults(trickle_ms=10)
    sent = scene.sender.put("1")
    assert scene.receiver.txn_ids == ["1"]

    passed_ms = 0
    while not sent.called:
        scene.pass_ms(10)
        passed_ms += 10

    assert result_of(sent).body == b'{"n":1}'
    assert passed_ms > 500
    scene.network.settle()
    assert scene.sender.connections.kept == 0
    (recorded,) = scene.wire.transactions()
    assert recorded.answered_ms == passed_ms


def test_a_trickle_ends_with_its_reader(scene: Scene) -> None:
    """A timer that goes on for nobody keeps the rig from ever being quiet."""
    scene.link().faults = Faults(trickle_ms=10)
    sent = scene.sender.put("1")
    scene.pass_ms(10)

    sent.cancel()
    scene.network.settle()
    scene.pass_ms(10)

    failure_of(sent, Exception)
    assert scene.clock.getDelayedCalls() == []
    assert scene.wire.transactions()[0].note == "failed: its sender left"


# --- the door ----------------------------------------------------------------------------------------


def test_a_door_knows_who_comes_by_what_is_claimed(scene: Scene) -> None:
    """Strangers have one port between them: their faults and their records are told apart by the claim."""
    fox, owl = ServerName("fox.example"), ServerName("owl.example")
    scene.door({fox: Faults(status=503), owl: NO_FAULTS}.__getitem__)

    for_fox = scene.sender.begin("PUT", SEND + "1", b"{}", headers={"Authorization": X_MATRIX.format(fox)})
    for_owl = scene.sender.begin("PUT", SEND + "1", b"{}", headers={"Authorization": X_MATRIX.format(owl)})

    assert result_of(for_fox).status == 503
    assert result_of(for_owl).status == 200
    assert [(each.origin, each.status) for each in scene.wire.transactions()] == [(fox, 503), (owl, 200)]
    assert scene.receiver.heard[0].headers["x-forwarded-for"] == ["127.0.0.1"]


@pytest.mark.parametrize("header", ["", "X-Matrix nonsense", "Bearer token"])
def test_a_door_lets_through_whoever_claims_nothing(scene: Scene, header: str) -> None:
    """Key requests are not signed; and a server whose signature is nonsense shall hear so."""
    scene.door({}.__getitem__)

    assert result_of(scene.sender.begin("GET", "/", headers={"Authorization": header})).status == 200
    assert (
        result_of(scene.sender.begin("PUT", SEND + "1", b"{}", headers={"Authorization": header})).status
        == 200
    )

    assert [each.origin for each in scene.wire.transactions()] == [UNKNOWN]


def test_a_door_that_is_down_for_somebody_resets_its_connections(scene: Scene) -> None:
    """The port is everybody's: this is as near to refused as it gets."""
    fox = ServerName("fox.example")
    scene.door(lambda origin: Faults(down=True))

    sent = scene.sender.begin("PUT", SEND + "1", b"{}", headers={"Authorization": X_MATRIX.format(fox)})

    failure_of(sent, DeliveryFailed)
    assert scene.receiver.heard == []
    assert scene.wire.transactions() == []
