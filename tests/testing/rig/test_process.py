import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedpresence.errors import DeliveryFailed
from fedpresence.testing.homeserver import FakeAnswer, FakeHomeserver
from fedpresence.testing.http import request
from fedpresence.testing.rig.process import Rig
from tests.testing.orphans import wait_until_gone

HERE, THERE, FAKE = "here.test", "there.test", "fake.test"


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """One rig for the tests that change nothing of each other's."""
    with Rig(users=[f"user{number}@{name}" for number in range(12) for name in (HERE, THERE)]) as rig:
        yield rig


def test_a_story_with_the_virtual_clock() -> None:
    """The library's own example, and that nothing of it takes real time."""
    with Rig() as rig:
        alice, bob = rig.user("alice@here.test"), rig.user("@bob:there.test")
        began_ms = rig.now_ms

        alice.change_list(invite=[bob.user_id])
        assert rig.settle() == 0
        assert [entry["user_id"] for entry in bob.subscriptions()["invites"]] == [alice.user_id]
        bob.change_list(accept=[alice.user_id])
        bob.stream()
        bob.is_active()
        rig.settle()
        rig.advance(seconds=1)
        online = alice.presence_of(bob.user_id, presence="online")
        now_ms = rig.advance(minutes=5)
        idle = alice.presence_of(bob.user_id, presence="unavailable")
        bob.stream(open=False)
        rig.advance(seconds=31)

        assert online["currently_active"] is True
        assert now_ms == began_ms + 301_000
        assert idle["last_active_ago"] >= 300_001
        assert alice.status_of(bob.user_id).body["presence"] == "offline"
        said = [(each["from"], each["to"]) for each in rig.transactions()]
        assert said[:2] == [(HERE, THERE), (THERE, HERE)]
        assert rig.transactions(origin=HERE, destination=THERE)[0]["status"] == 200
        assert "invite @alice:here.test → @bob:there.test" in rig.wire_text()


def test_what_does_not_come_is_said_at_once(shared: Rig) -> None:
    """Nothing more can come before time passes, so nobody waits for it."""
    alice = shared.user("user0@here.test")

    with pytest.raises(AssertionError, match=r"@user0:here\.test sees nothing of it"):
        alice.sync_until(lambda answer: False)


def test_a_link_is_broken_and_healed(shared: Rig) -> None:
    """What waits for a link is sent when the sender tries again."""
    alice, bob = shared.user("user1@here.test"), shared.user("user1@there.test")
    shared.link(HERE, THERE, down=True)
    alice.change_list(invite=[bob.user_id])
    shared.advance(minutes=1)
    while_down = bob.subscriptions()["invites"]
    shared.heal(HERE, THERE)
    shared.advance(minutes=2)

    assert while_down == []
    assert len(bob.subscriptions()["invites"]) == 1


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_goes_and_comes_back_on_its_data(shared: Rig, how: str) -> None:
    """Stopped or crashed: its users, their tokens and its addresses are the same afterwards."""
    server = shared[THERE]
    bob = shared.user("user2@there.test")
    url = server.client_url

    server.stop() if how == "stop" else server.kill()
    stopped = server.is_running
    with pytest.raises(ConnectionError):
        request("GET", f"{url}/health")
    server.start()

    assert stopped is False
    assert server.is_running
    assert server.client_url == url
    assert bob.status_of(bob.user_id).status == 200


def test_data_is_kept_lost_and_gone_back_to(shared: Rig) -> None:
    """Repair is tested by servers that forget."""
    alice, bob = shared.user("user3@here.test"), shared.user("user3@there.test")
    with pytest.raises(DeliveryFailed, match="no backup") as raised:
        shared[HERE].restore()
    alice.change_list(invite=[bob.user_id])
    shared[HERE].backup()

    shared[HERE].wipe()
    wiped = alice.subscriptions()["list"]
    shared[HERE].restore()
    restored = alice.subscriptions()["list"]

    assert raised.value.status == 400
    assert wiped == []
    assert [entry["user_id"] for entry in restored] == [bob.user_id]


def test_a_key_is_changed_and_told(shared: Rig) -> None:
    """The handle knows the new key, for a test that checks signatures itself."""
    server = shared[HERE]
    before = (server.key_id, server.verify_key)

    server.rotate_key()

    assert server.key_id != before[0]
    assert server.verify_key != before[1]


def test_a_wrong_clock(shared: Rig) -> None:
    """One server's, not the others'."""
    server = shared[THERE]
    now_ms = shared.now_ms

    server.set_clock(3_600_000)
    server.set_clock(0)

    assert server.is_running
    assert shared.now_ms >= now_ms


def test_a_homeserver_says_and_answers_what_it_is_told(shared: Rig) -> None:
    """A peer for every case that a real one would never show."""
    alice = shared.user("user4@here.test")
    fake = shared.homeserver(FAKE)
    eve = f"@eve:{FAKE}"

    invited = fake.send(HERE, [FakeHomeserver.invite(eve, alice.user_id)])
    forged = fake.send(HERE, [FakeHomeserver.invite(eve, alice.user_id)], forge="signature")
    shared.settle()
    fake.answer(next=[FakeAnswer(503)])
    alice.change_list(accept=[eve])
    shared.advance(minutes=1)

    assert (invited["status"], forged["status"]) == (200, 401)
    statuses = [each["status"] for each in shared.transactions(HERE, FAKE)]
    assert statuses[:2] == [503, 200]
    assert "m.presence_accept" in [edu["edu_type"] for edu in fake.edus()]
    assert all(each["verified"] for each in fake.received() if each["txn_id"] is not None)
    assert shared.homeserver(FAKE) is fake
    fake.forget_received()
    assert fake.received() == []


def test_a_homeserver_sends_over_a_slow_link(shared: Rig) -> None:
    """The sender does not wait for time that only it can turn; the transaction arrives all the same."""
    bob = shared.user("user5@there.test")
    fake = shared.homeserver("slow.test")
    shared.link("slow.test", THERE, latency_ms=2_000)

    answered = fake.send(THERE, [FakeHomeserver.invite("@eve:slow.test", bob.user_id)])
    before = bob.subscriptions()["invites"]
    shared.advance(seconds=5)  # the key fetch is the other way round, and not slow

    assert answered["status"] is None
    assert before == []
    assert [entry["user_id"] for entry in bob.subscriptions()["invites"]] == ["@eve:slow.test"]


def test_a_homeserver_changes_its_key(shared: Rig) -> None:
    """Told at once, and believed: the new key is fetched."""
    fake = shared.homeserver("keys.test")
    first = fake.send(HERE, [])
    before = fake.key_id

    fake.rotate_key()
    shared.advance(minutes=10)  # one fetch for an unknown key in 5 minutes: Z-4
    second = fake.send(HERE, [])

    assert fake.key_id != before
    assert (first["status"], second["status"]) == (200, 200)


def test_what_the_rig_refuses_has_its_reason(shared: Rig) -> None:
    """The rig's own words, status and code; a name that is not in the rig is a KeyError where we know."""
    with pytest.raises(DeliveryFailed, match=r"no link from here\.test to x\.test") as raised:
        shared.link(HERE, "x.test")
    assert (raised.value.status, raised.value.errcode) == (404, "M_NOT_FOUND")
    with pytest.raises(
        DeliveryFailed, match=r"no link from fake\.test to x\.test: it has .*there\.test"
    ) as raised:
        shared.homeserver(FAKE).send("x.test", [])
    assert (raised.value.status, raised.value.errcode) == (404, "M_NOT_FOUND")
    with pytest.raises(DeliveryFailed, match="--clock real"):
        shared.external("x.test", "127.0.0.1:1")
    with pytest.raises(KeyError):
        shared["x.test"]
    with pytest.raises(KeyError):
        shared.user("nobody@here.test")


def test_a_rig_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The log is in the error: a test's author sees the wrong key, not a timeout."""
    with pytest.raises(AssertionError, match=r"ended with 78:\n(.*\n)*presence\.idle_tiemout: "):
        Rig(config={"presence": {"idle_tiemout": "5m"}}).start()


def test_a_rig_of_nonsense_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that is no YAML is found out before there is a process to tell so."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rig = Rig(config={"federation": {"ca_file": tmp_path}})

    with pytest.raises(yaml.YAMLError, match="cannot represent an object"):
        rig.start()

    assert list(tmp_path.iterdir()) == []
    assert not rig.is_running


def test_modules_of_the_project_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many a bot has a `secrets.py` where its tests are run."""
    (tmp_path / "secrets.py").write_text("raise SystemExit('not meant for you')")
    monkeypatch.chdir(tmp_path)

    with Rig([HERE], []) as rig:
        assert rig.settle() == 0


def test_a_rig_that_was_not_started_says_so() -> None:
    """Who forgot the `with` is told that, and not that some attribute is missing."""
    rig = Rig([HERE], ["alice@here.test"])

    for use in (rig.settle, lambda: rig.user("alice@here.test"), lambda: rig[HERE]):
        with pytest.raises(AttributeError, match="the rig was not started; use it in a with statement"):
            use()
    assert not hasattr(rig, "anything_else")


def test_a_failure_inside_shows_wire_and_log() -> None:
    """What was said, and whatever the rig's servers warned of, stands beside the failure."""
    with pytest.raises(ValueError) as raised, Rig([HERE, "there.test"], ["alice@here.test"], seed=5) as rig:
        rig.user("alice@here.test").change_list(invite=["@bob:there.test"])
        rig.settle()
        raise ValueError("the test's own")

    wire, log = raised.value.__notes__
    assert wire.startswith("--- wire of the rig ---\n")
    assert "invite @alice:here.test → @bob:there.test" in wire
    assert log.startswith("--- log of the rig ---\nseed 5\n")


def test_a_rig_that_died_is_noticed() -> None:
    """An exit code that is not 0 fails the test that used the rig."""
    rig = Rig([HERE], []).start()
    data = rig.ca_file.parent
    os.kill(rig.pid, signal.SIGKILL)

    with pytest.raises(AssertionError, match="the rig ended with -9"):
        rig.close()
    assert not data.exists()


def test_two_rigs_on_the_real_clock_reach_each_other() -> None:
    """What a foreign homeserver does, done by a rig: `--addressable` one way, `/external` the other."""
    with (
        Rig(["a.test"], ["alice@a.test"], clock="real", addressable=True) as ours,
        Rig(["b.test"], ["bob@b.test"], clock="real", addressable=True) as theirs,
    ):
        alice, bob = ours.user("alice@a.test"), theirs.user("bob@b.test")
        here, there = ours["a.test"].name, theirs["b.test"].name
        ours.external(there, there, theirs.ca_file)
        theirs.external(here, here, ours.ca_file)

        alice.sync()
        bob.sync()
        alice.change_list(invite=[bob.user_id])
        asked = bob.sync_until(lambda answer: bool(answer["to_device"]["events"]), 20)
        bob.change_list(accept=[alice.user_id])
        told = alice.sync_until(lambda answer: bool(answer["to_device"]["events"]), 20)

    assert asked["to_device"]["events"][0]["type"] == "m.presence_invite"
    assert told["to_device"]["events"][0]["type"] == "m.presence_accept"


def test_a_rig_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """A test run that is killed must not leave a rig behind for ever, nor its folder."""
    script = (
        "import os, sys\n"
        "from fedpresence.testing import Rig\n"
        "rig = Rig(['here.test'], []).start()\n"
        "print(rig.pid, rig.ca_file.parents[2], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    pid_text, own_folder = killed.stdout.decode().split()
    wait_until_gone(int(pid_text))

    assert killed.returncode == -9
    assert not Path(own_folder).exists()
