import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import treq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from fedpresence.engine.events import Activity, ListChanged
from fedpresence.engine.presence import PresenceState
from fedpresence.errors import ConfigError
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.rig.faults import Faults
from fedpresence.testing.rig.twisted import DEVICE, RigOptions, TwistedRig
from tests.in_reactor import in_reactor
from tests.testing.rig.pair import (
    ALICE,
    BOB,
    DAY_MS,
    HERE,
    MINUTE_MS,
    PAIR,
    THERE,
    befriend,
    parts_of,
    seen,
    submit,
    with_rig,
)


def test_after_an_advance_everything_that_was_due_has_happened() -> None:
    """Over real sockets and real TLS, every time: no test of a reader's may need a sleep."""

    async def story(rig: TwistedRig) -> list[str | None]:
        await befriend(rig)
        states = [seen(rig)]
        await rig.advance(5 * MINUTE_MS)
        states.append(seen(rig))
        await rig.advance(1)
        states.append(seen(rig))
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(30_001)
        states.append(seen(rig))
        return states

    for _ in range(5):
        assert with_rig(story) == ["online", "online", "unavailable", "offline"]


def test_nine_days_are_over_in_a_moment_and_nothing_was_skipped() -> None:
    """A lease is looked at once a week; a rig that only jumped would never see it."""

    async def story(rig: TwistedRig) -> tuple[int, str | None, set[str]]:
        await befriend(rig)
        begun = len(rig.wire)
        now_ms = await rig.advance(9 * DAY_MS)
        said = {each.body["edus"][0]["edu_type"] for each in rig.wire.transactions()[begun:]}
        return now_ms - 1_700_000_000_000, seen(rig), said

    passed_ms, state, said = with_rig(story)

    assert passed_ms == 9 * DAY_MS
    assert state == "unavailable"
    assert said == {"m.presence", "m.presence_invite", "m.presence_accept"}


def test_what_a_fault_holds_up_is_in_flight_until_its_time() -> None:
    """`settle` says so at once: no real time would bring the answer."""

    async def story(rig: TwistedRig) -> list[object]:
        await befriend(rig)
        await rig.advance(1000)
        await rig.set_faults("there.test", "here.test", Faults(latency_ms=700))
        await submit(rig, "there.test", Activity(BOB, DEVICE, None))
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(30_001)
        held: list[object] = [await rig.settle(), seen(rig)]
        await rig.advance(699)
        held.append(seen(rig))
        await rig.advance(1)
        return [*held, await rig.settle(), seen(rig)]

    assert with_rig(story) == [1, "online", "online", 0, "offline"]


def test_a_name_outside_a_virtual_rig_leads_nowhere_at_once() -> None:
    """A look-up would take real time, which a virtual clock knows nothing of."""

    async def story(rig: TwistedRig) -> tuple[int, str]:
        await submit(rig, "here.test", ListChanged(ALICE, invite=(UserID("@eve:elsewhere.test"),)))
        in_flight = await rig.settle()
        (status,) = parts_of(rig, "here.test").outbound.describe(None).values()
        return in_flight, status.state

    assert with_rig(story) == (0, "failing")


def test_who_was_killed_answers_nobody_and_what_it_had_answered_stands() -> None:
    """A crash is what the recovery is tested with: it must be one."""

    async def story(rig: TwistedRig) -> tuple[bool, str | None]:
        await befriend(rig)
        server = rig.server("there.test")
        unheard = parts_of(rig, "there.test").hub.submit(ListChanged(BOB, deny=(UserID("@eve:here.test"),)))
        await server.kill()
        await server.start()
        await rig.settle()
        told = unheard.called
        await submit(rig, "there.test", ListChanged(BOB, revoke=(ALICE,)))
        await server.kill()
        await server.start()
        await rig.advance(MINUTE_MS)
        return told, seen(rig)

    was_told, shown = with_rig(story)

    assert not was_told
    assert shown is None


def test_a_clean_stop_is_a_stop_though_nobody_turns_the_clock() -> None:
    """What a daemon waits for when it ends is the rig's time."""

    async def story(rig: TwistedRig) -> tuple[bool, int, str | None]:
        await befriend(rig)
        await rig.set_faults("there.test", "here.test", Faults(hang=True))
        await rig.advance(1000)
        await submit(rig, "there.test", Activity(BOB, DEVICE, None))
        began_ms = rig.now_ms
        await rig.server("there.test").stop()
        return rig.server("there.test").is_running, rig.now_ms - began_ms, seen(rig)

    is_running, took_ms, state = with_rig(story)

    assert not is_running and state == "online"
    assert 0 <= took_ms <= 10_000


def test_a_copy_brings_yesterday_back_and_a_wipe_nothing() -> None:
    """Both are what operators do to their servers, with the users' clients knowing nothing of it."""

    async def story(rig: TwistedRig) -> list[int]:
        server = rig.server("there.test")
        with pytest.raises(LookupError, match=r"there\.test has no backup"):
            await server.restore()
        await server.backup()
        await befriend(rig)
        grants = [len(parts_of(rig, "there.test").engine.observers_of(BOB))]
        await server.restore()
        grants.append(len(parts_of(rig, "there.test").engine.observers_of(BOB)))
        assert await parts_of(rig, "there.test").store.find_token(rig.users[BOB].access_token)
        await server.wipe()
        assert await parts_of(rig, "there.test").store.find_token(rig.users[BOB].access_token)
        return [*grants, len(parts_of(rig, "there.test").engine.observers_of(BOB))]

    assert with_rig(story) == [1, 0, 0]


def test_a_copy_of_an_empty_server_brings_its_users_back_too() -> None:
    """Their tokens are always good, though the copy has none: it may be another rig's, or a fresh disk's."""

    async def story(rig: TwistedRig) -> object:
        server = rig.server("there.test")
        await server.stop()
        await server.wipe()
        await server.backup()
        await server.start()
        await server.restore()
        return await parts_of(rig, "there.test").store.find_token(rig.users[BOB].access_token)

    assert with_rig(story) is not None


def test_a_servers_wrong_clock_shows_in_its_stamps_and_not_in_its_ages() -> None:
    """Ages are lengths: a server that is an hour ahead still knows how long its user was away."""

    async def story(rig: TwistedRig) -> tuple[int, int]:
        await rig.server("there.test").set_clock(3_600_000)
        await befriend(rig)
        await rig.advance(MINUTE_MS + 200)
        body = rig.wire.transactions(THERE, HERE)[-1].body
        (push,) = body["edus"][0]["content"]["push"]
        return body["origin_server_ts"] - rig.now_ms, push["last_active_ago"]

    ahead_ms, ago_ms = with_rig(story)

    assert abs(ahead_ms - 3_600_000) <= 200
    assert ago_ms == MINUTE_MS


def test_a_server_with_a_new_key_is_still_believed() -> None:
    """Others fetch it by themselves, and what was signed with the old one stays signed."""

    async def story(rig: TwistedRig) -> tuple[bool, list[str], str | None]:
        await befriend(rig)
        server = rig.server("there.test")
        old = server.key_id
        await server.rotate_key()
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(30_001)
        published = parts_of(rig, "there.test").identity.key_object(rig.now_ms)
        return server.key_id != old, list(published["old_verify_keys"]), seen(rig)

    is_new, old_keys, state = with_rig(story)

    assert is_new and len(old_keys) == 1 and state == "offline"


def test_a_rig_on_the_data_of_another_goes_on_with_its_keys(tmp_path: Path) -> None:
    """Others know the newest key by now, and what was signed with older ones stays signed."""
    options = RigOptions(("there.test",), folder=tmp_path, start_ms=PAIR.start_ms)

    async def rotated(rig: TwistedRig) -> tuple[str, str, dict[str, Any]]:
        server = rig.server("there.test")
        await server.rotate_key()
        return keys(rig)

    async def looked_at(rig: TwistedRig) -> tuple[str, str, dict[str, Any]]:
        return keys(rig)

    def keys(rig: TwistedRig) -> tuple[str, str, dict[str, Any]]:
        identity = parts_of(rig, "there.test").identity
        published = identity.key_object(rig.now_ms)
        return rig.server("there.test").key_id, identity.key_id, published["old_verify_keys"]

    first = with_rig(rotated, options)
    second = with_rig(rotated, options)
    third = with_rig(looked_at, options)

    assert third == second
    assert len({first[0], *second[2]}) == 2 and first[2].items() < second[2].items()
    assert third[0] == third[1] not in third[2]


def test_a_rig_on_the_data_of_another_goes_on_at_its_time(tmp_path: Path) -> None:
    """Data from the future are a fault that a test has to ask for: a user would be active before they came.

    A rig that was killed has kept the time of its last turn.
    """
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path)

    async def turned(rig: TwistedRig) -> tuple[int, int]:
        began_ms = rig.now_ms
        await befriend(rig)
        ended_ms = await rig.advance(10 * DAY_MS)
        kept = int((tmp_path / "now_ms").read_text())
        assert kept == ended_ms
        return began_ms, ended_ms

    async def greeted(rig: TwistedRig) -> tuple[int, int, str | None]:
        began_ms = rig.now_ms
        await rig.set_stream(BOB, is_open=True)
        await submit(rig, "there.test", Activity(BOB, DEVICE, None))
        await rig.advance(1_000)
        return began_ms, rig.now_ms, seen(rig)

    _, first_ms = with_rig(turned, options)
    second_ms, _, state = with_rig(greeted, options)

    assert second_ms == first_ms
    assert state == "online"


def test_a_rig_on_the_data_of_another_has_settled_when_it_is_started(tmp_path: Path) -> None:
    """What waited on the disk leaves before anybody asks for anything, or it would race with that."""
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path)

    async def invited(rig: TwistedRig) -> None:
        await rig.server("here.test").kill()
        await submit(rig, "there.test", ListChanged(BOB, invite=(ALICE,)))

    async def looked_at(rig: TwistedRig) -> list[int | None]:
        return [each.status for each in rig.wire.transactions(THERE, HERE)]

    with_rig(invited, options)

    assert with_rig(looked_at, options) == [200]


def test_a_rig_that_is_stopped_while_its_clock_turns_has_come_as_far_as_it_has(tmp_path: Path) -> None:
    """The next rig must not begin at a time that this one's servers never saw."""
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path, start_ms=PAIR.start_ms)

    async def story(rig: TwistedRig) -> tuple[int, int]:
        await befriend(rig)
        until_ms = rig.now_ms + 10 * DAY_MS
        stopped = Deferred[None]()
        rig.clock.callLater(3600, lambda: Deferred.fromCoroutine(rig.stop()).chainDeferred(stopped))
        reached_ms = await rig.advance(10 * DAY_MS)
        await stopped
        return until_ms - reached_ms, int((tmp_path / "now_ms").read_text()) - reached_ms

    left_ms, kept_more_ms = with_rig(story, options)

    assert 0 < left_ms < 10 * DAY_MS
    assert kept_more_ms == 0


def test_the_time_that_a_clean_stop_took_is_kept_too(tmp_path: Path) -> None:
    """A rig that is killed then would begin before what its server wrote as it stopped."""
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path)

    async def story(rig: TwistedRig) -> tuple[int, int, int]:
        await befriend(rig)
        began_ms = await rig.advance(0)
        await rig.server("here.test").kill()  # so that the last words do not leave
        await submit(rig, "there.test", Activity(BOB, DEVICE, None))
        await rig.server("there.test").stop()
        return began_ms, rig.now_ms, int((tmp_path / "now_ms").read_text())

    began_ms, ended_ms, kept_ms = with_rig(story, options)

    assert began_ms < ended_ms == kept_ms


def test_a_folder_has_one_rig_at_a_time(tmp_path: Path) -> None:
    """The second is refused before it changed anything: the first goes on with its keys and certificates."""
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path, start_ms=PAIR.start_ms)

    async def story(rig: TwistedRig) -> tuple[bool, str | None]:
        before = contents()
        with pytest.raises(ConfigError, match=r"--dir: .* is in use by another rig\. Stop that one first"):
            await TwistedRig.start(rig._reactor, options)
        is_untouched = contents() == before
        await rig.server("there.test").stop()
        await rig.server("there.test").start()
        await befriend(rig)
        return is_untouched, seen(rig)

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".yaml", ".pem")}

    assert with_rig(story, options) == (True, "online")


def test_a_folder_that_is_removed_while_its_rig_runs_ends_nothing(tmp_path: Path) -> None:
    """Whoever tidies up a moment too soon must not see the rig fail at its very end."""
    folder = tmp_path / "rig"
    options = RigOptions(PAIR.servers, PAIR.users, folder=folder, start_ms=PAIR.start_ms)

    async def story(rig: TwistedRig) -> int:
        began_ms = rig.now_ms
        (folder / "now_ms").unlink(missing_ok=True)
        folder.rename(tmp_path / "elsewhere")
        return await rig.advance(1_000) - began_ms

    assert with_rig(story, options) == 1_000
    assert not folder.exists()


def test_a_folder_that_no_rig_can_use_is_not_kept_from_the_next(tmp_path: Path) -> None:
    """The complaint names the file; once that is gone the folder is free."""
    kept = tmp_path / "now_ms"
    kept.write_text("")
    options = RigOptions(PAIR.servers, PAIR.users, folder=tmp_path)

    async def story(reactor: Any) -> None:
        with pytest.raises(ConfigError, match=r"--dir: .*now_ms holds no time"):
            await TwistedRig.start(reactor, options)
        kept.unlink()
        await (await TwistedRig.start(reactor, options)).stop()

    in_reactor(story)


def test_a_stream_that_is_held_open_is_opened_again_after_a_restart() -> None:
    """As a client would: that its server was away is no reason to be offline."""

    async def story(rig: TwistedRig) -> tuple[str | None, str | None]:
        await befriend(rig)
        await rig.server("there.test").kill()
        await rig.advance(10 * MINUTE_MS)
        await rig.server("there.test").start()
        await rig.advance(MINUTE_MS)
        here = seen(rig)
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(MINUTE_MS)
        return here, seen(rig)

    state, after = with_rig(story)

    assert state in ("online", "unavailable") and after == "offline"


def test_a_hidden_stream_is_no_presence() -> None:
    """`set_presence=offline` has no effect on presence, at the beginning and at the end."""

    async def story(rig: TwistedRig) -> str | None:
        await befriend(rig)
        await rig.set_stream(BOB, is_open=False)
        await rig.advance(MINUTE_MS)
        await rig.set_stream(BOB, is_open=True, set_presence=PresenceState.OFFLINE)
        await rig.advance(MINUTE_MS)
        return seen(rig)

    assert with_rig(story) == "offline"


def test_a_scripted_homeserver_is_one_more_server_of_the_rig() -> None:
    """It sends signed, is answered, and gets what its users are owed, over links that can be broken."""

    async def story(rig: TwistedRig) -> list[object]:
        fake = await rig.add_homeserver("fake.test")
        invite = fake.invite("@eve:fake.test", BOB)
        answered = await fake.send(rig.server("there.test").name, [invite])
        await rig.settle()
        await submit(rig, "there.test", ListChanged(BOB, accept=(UserID("@eve:fake.test"),)))
        await rig.settle()
        told = [(each.verified, [edu["edu_type"] for edu in each.edus]) for each in fake.transactions]
        await rig.set_faults("fake.test", "there.test", Faults(status=503))
        refused = await fake.send(rig.server("there.test").name, [invite])
        return [answered.status, told, refused.status]

    assert with_rig(story) == [200, [(True, ["m.presence_accept", "m.presence"])], 503]


@pytest.mark.parametrize("given", ["", "token", "token_path", "neither"])
def test_the_admin_token_that_is_told_is_the_one_that_holds(tmp_path: Path, given: str) -> None:
    """Whoever tests with the configuration that they operate with brings a token along."""
    token_file = tmp_path / "token"
    token_file.write_text("from-a-file-16-characters")
    token_file.chmod(0o600)
    section = {
        "": {},
        "token": {"token": "given-16-characters"},
        "token_path": {"token_path": str(token_file)},
        "neither": {"token": None, "token_path": None},
    }[given]
    options = RigOptions(("here.test",), config={"admin": section}, folder=tmp_path / "rig")

    async def story(rig: TwistedRig) -> tuple[int, str]:
        told = rig.ready()["servers"][HERE]
        url = f"{told['admin_url']}/_fedpresence/admin/v1/status"
        headers: Any = {"Authorization": f"Bearer {told['admin_token']}"}
        answer = await treq.get(url, headers=headers, persistent=False)
        await answer.content()
        return answer.code, told["admin_token"]

    status, token = with_rig(story, options)

    assert status == 200
    assert token.startswith({"token": "given-", "token_path": "from-a-file-"}.get(given, ""))


def test_chance_on_one_link_is_none_of_the_others_business() -> None:
    """Two links are used in an order of their own, which must not decide what is lost on either."""

    def lost(*others: str) -> list[bool]:
        async def story(rig: TwistedRig) -> list[bool]:
            fake = await rig.add_homeserver("fake.test")
            for server in ("here.test", *others):
                await rig.set_faults("fake.test", server, Faults(drop_request=0.5))
            for number in range(20):
                for server in (*others, "here.test"):
                    sent = Deferred.fromCoroutine(fake.send(ServerName(server), [], txn_id=str(number)))
                    sent.addErrback(lambda failure: failure.trap(CancelledError))
                await rig.settle()
            return [each.status is None for each in rig.wire.transactions(fake.server_name, HERE)]

        return with_rig(story)

    alone = lost()

    assert len(alone) == 20 and len(set(alone)) == 2
    assert lost("there.test") == alone


def test_what_a_rig_cannot_be_is_said_before_anything_runs(tmp_path: Path) -> None:
    """A wrong name in a fixture is the first mistake that everybody makes."""
    for options, error, words in (
        (RigOptions(("here test",)), ValueError, "here test' is no server name"),
        (RigOptions(("here.test", "here.test")), ValueError, "in the rig already"),
        (RigOptions(("here.test",), ("alice@there.test",)), ValueError, r"no server of the rig is called"),
        (
            RigOptions(("here.test",), config={"presence": {"idle": 1}}, folder=tmp_path),
            ConfigError,
            r"presence\.idle",
        ),
    ):

        async def story(rig: TwistedRig) -> None:
            raise AssertionError("it started")

        with pytest.raises(error, match=words):
            with_rig(story, options)


def test_a_rig_that_is_cancelled_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody presses Ctrl-C at once: no file stays, and no thread that makes one again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def cancelled(reactor: Any, moments: int) -> None:
        starting = Deferred.fromCoroutine(TwistedRig.start(reactor, PAIR))
        for _ in range(moments):
            await deferLater(reactor, 0.001)
        starting.cancel()
        with suppress(CancelledError):
            await (await starting).stop()

    for moments in range(24):
        in_reactor(partial(cancelled, moments=moments))
        assert list(tmp_path.iterdir()) == []


def test_only_a_virtual_clock_is_turned_and_only_a_real_one_meets_the_world() -> None:
    """Each refusal says what to start the rig with."""

    async def virtual(rig: TwistedRig) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            await rig.advance(-1)
        with pytest.raises(ValueError, match="--clock real"):
            await rig.add_external("elsewhere.test", "127.0.0.1:1")

    async def real(rig: TwistedRig) -> None:
        with pytest.raises(ValueError, match="--clock virtual"):
            await rig.advance(1)
        with pytest.raises(ValueError, match="host:port"):
            await rig.add_external("elsewhere.test", "127.0.0.1")
        with pytest.raises(ValueError, match="in the rig already"):
            await rig.add_external("here.test", "127.0.0.1:1")

    async def addressable(rig: TwistedRig) -> None:
        with pytest.raises(ValueError, match="in the rig already"):
            await rig.add_external("here.test", "127.0.0.1:1")

    with_rig(virtual)
    with_rig(real, RigOptions(("here.test",), virtual=False))
    with_rig(addressable, RigOptions(("here.test",), virtual=False, addressable=True))


def test_with_the_real_clock_a_rig_settles_too() -> None:
    """The batch window is real time then, and so is what a peer takes to answer."""

    async def story(rig: TwistedRig) -> tuple[int, str | None]:
        await befriend(rig)
        return await rig.settle(), seen(rig)

    in_flight, state = with_rig(story, RigOptions(("here.test", "there.test"), PAIR.users, virtual=False))

    assert in_flight == 0 and state in ("online", "offline")


def test_two_rigs_in_one_process_know_nothing_of_each_other() -> None:
    """Tests run beside each other."""

    async def story(one: TwistedRig) -> tuple[str | None, str | None]:
        other = await TwistedRig.start(one._reactor, PAIR)
        await befriend(one)
        states = seen(one), seen(other)
        await other.stop()
        return states

    assert with_rig(story) == ("online", None)
