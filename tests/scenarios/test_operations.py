import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.http import request
from fedpresence.testing.processes import LocalFederation, ServerProcess, User
from tests.scenarios.conftest import HERE, THERE, LetIn, Start
from tests.scenarios.story import (
    DENY,
    DROP,
    Wire,
    befriend,
    eventually,
    invites_of,
    list_of,
    notice,
    observers_of,
    seen_by,
    set_room,
)

IN_ORDER_S = 5.0  # what a clean stop may take, whoever waits


# --- starting ---------------------------------------------------------------------------------


def test_the_ready_file_says_where_the_listeners_are(start: Start) -> None:
    """Port 0 is usable, a file left by a crash is replaced, and a clean stop takes its file away."""
    server = start(wired=False)[HERE]
    server.kill()
    stale = server.ready_file.read_text()
    listeners = [
        {"endpoint": "tcp:0:interface=127.0.0.1", "resources": ["client", "metrics"]},
        {"endpoint": "unix:run.sock", "resources": ["client"]},
    ]
    server.configure({"listeners": listeners})

    process = a_process(server, "run", "--ready-file", str(server.ready_file))
    ready_file = server.ready_file
    eventually(lambda: not ready_file.exists() or ready_file.read_text() != stale, "the file is gone")
    eventually(ready_file.exists, "it is ready")
    ready = json.loads(ready_file.read_text())
    place, local = ready["listeners"]
    health = request("GET", f"http://127.0.0.1:{place['port']}/health")
    process.terminate()
    words, _ = process.communicate(timeout=15)

    assert (ready["pid"], ready["server_name"]) == (process.pid, HERE)
    assert (place["resources"], place["host"]) == (["client", "metrics"], "127.0.0.1")
    assert (local["host"], local["port"]) == (str(server.config_file.parent / "run.sock"), 0)
    assert health.status == 200
    assert process.returncode == 0, words
    assert not server.ready_file.exists()


def test_a_daemon_whose_database_is_taken_away_ends(start: Start) -> None:
    """It would go on to answer for what nobody finds again; the service manager starts it anew."""
    here = start(wired=False)[HERE]
    here.stop()
    process = a_process(here, "run", "--ready-file", str(here.ready_file))
    eventually(here.ready_file.exists, "it is ready")

    (database,) = here.folder.glob("*.db")
    database.unlink()
    words, _ = process.communicate(timeout=15)

    assert process.returncode == 1, words
    assert "the file was taken away or replaced" in words
    assert "Traceback" not in words


def test_the_database_of_another_server_is_spoken_of(start: Start, let_in: LetIn) -> None:
    """Restored on the wrong host, or the name was changed: nobody in it is served, and nothing says why."""
    federation = start(wired=False)
    here = federation[HERE]
    let_in(federation, "alice@here.test")
    here.stop()
    listeners = [{"endpoint": "tcp:0:interface=127.0.0.1", "resources": ["client"]}]
    here.configure({"server_name": "other.test", "listeners": listeners})

    process = a_process(here, "run", "--ready-file", str(here.ready_file))
    eventually(here.ready_file.exists, "it is ready")
    process.terminate()
    words, _ = process.communicate(timeout=15)

    assert process.returncode == 0, words
    assert "the users of here.test, who are strangers to other.test" in words


def test_a_second_process_on_the_same_database_is_refused(start: Start, let_in: LetIn) -> None:
    """Two daemons would answer for each other; the second says why, and the first does not notice (Z-22)."""
    federation = start()
    here = federation[HERE]
    (alice,) = let_in(federation, "alice@here.test")
    config = yaml.safe_load(here.config_file.read_text())
    config["listeners"] = [{"endpoint": "tcp:0:interface=127.0.0.1", "resources": ["client"]}]
    other = here.folder / "second.yaml"
    other.write_text(yaml.safe_dump(config))

    second = run_to_its_end("run", "-c", str(other), "--ready-file", str(here.ready_file))

    assert second.returncode == 78
    assert json.loads(here.ready_file.read_text())["pid"] == here.pid, "not the second's to take away"
    assert "database.url" in second.stderr
    assert f"process {here.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert alice.put_status("online").status == 200


def test_a_port_that_is_taken_is_named(start: Start, tmp_path: Path) -> None:
    """The most frequent mistake of all deserves a sentence, not a traceback."""
    here = start()[HERE]
    config = yaml.safe_load(here.config_file.read_text())
    other = here.folder / "second.yaml"
    other.write_text(yaml.safe_dump(config | {"database": {"url": f"sqlite:///{tmp_path}/other.db"}}))

    second = run_to_its_end("run", "-c", str(other))

    assert second.returncode == 1, "it may be free in a moment: no reason not to try again"
    (complaint,) = [line for line in second.stderr.splitlines() if " error " in line]
    assert here.client_url.rpartition(":")[2] in complaint
    assert "Traceback" not in second.stderr


def test_a_wrong_config_names_every_mistake_at_once(start: Start) -> None:
    """Who repairs a config wants the whole list, and exit 78 for the service manager."""
    here = start()[HERE]
    here.stop()
    here.configure(
        {
            "presense": {},
            "presence": {"idle_timeout": "soon", "last_active_granularity": "0s"},
            "lists": {"max_entries": -1},
            "signing_key_path": "not-there.key",
        }
    )

    for command in ("run", "check-config"):
        done = here.attempt(command)
        assert done.returncode == 78
        for key in ("presense", "presence.idle_timeout", "lists.max_entries", "signing_key_path"):
            assert any(line.startswith(key) for line in done.stderr.splitlines()), (key, done.stderr)
        assert "Traceback" not in done.stderr


# --- stopping ---------------------------------------------------------------------------------


def test_sigterm_ends_in_seconds_with_clients_waiting(start: Start, let_in: LetIn) -> None:
    """Long polls are answered, not cut, and nobody's half minute holds up a restart."""
    federation = start()
    here = federation[HERE]
    alice, berta = let_in(federation, "alice@here.test", "berta@here.test")
    answers: list[Any] = []
    waiting = []
    for user in (alice, berta):
        user.sync()
        user.sync()  # the own coming online is read: what follows waits
        waiting.append(threading.Thread(target=lambda u=user: answers.append(u.sync(timeout_ms=60_000))))
        waiting[-1].start()
    eventually(lambda: open_streams(here, alice) and open_streams(here, berta), "both wait")

    begun = time.monotonic()
    assert here.stop() == 0
    assert time.monotonic() - begun < IN_ORDER_S
    for thread in waiting:
        thread.join(10)

    assert ["next_batch" in answer for answer in answers] == [True, True]


@pytest.mark.parametrize("tells", [True, False])
def test_a_clean_stop_tells_offline_where_that_is_wanted(start: Start, let_in: LetIn, tells: bool) -> None:
    """`presence.offline_on_stop`: for good it should be told, for an update nobody wants the flicker."""
    federation = start(per_server={THERE: {"presence": {"offline_on_stop": tells}}})
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    bob.put_status("online")
    alice.sync()
    alice.presence_of(bob.user_id, presence="online")

    assert federation[THERE].stop() == 0

    assert seen_by(alice, bob) == ("offline" if tells else "online")


# --- tokens and users -------------------------------------------------------------------------


def test_tokens_are_honoured_and_revoked_while_it_runs(shared: LocalFederation, let_in: LetIn) -> None:
    """An operator's word holds at once, or within two seconds where it takes something away."""
    here = shared[HERE]
    laptop, phone = let_in(shared, "alice@here.test/LAPTOP", "alice@here.test/PHONE")
    assert whoami(laptop) == whoami(phone) == 200, "added beside the running daemon"
    polls: list[Any] = []
    phone.sync()
    phone.sync()
    waiting = threading.Thread(target=lambda: polls.append(phone.sync(timeout_ms=30_000)))
    waiting.start()

    listed = here.command("token", "list", laptop.user_id)
    assert ("LAPTOP" in listed, "PHONE" in listed, phone.token in listed) == (True, True, False)
    here.command("token", "revoke", phone.user_id, "--device", "PHONE")
    revoked = time.monotonic()

    eventually(lambda: whoami(phone) == 401, "the token is refused", 2)
    print(f"a revoked token was refused after {(time.monotonic() - revoked) * 1000:.0f} ms")
    assert whoami(laptop) == 200
    laptop.put_status("unavailable", "for the laptop only")
    waiting.join(35)
    assert "for the laptop only" not in str(polls), "a poll that waited is asked again after its wait"
    assert here.attempt("token", "revoke", phone.user_id, "--device", "PHONE").returncode == 1
    assert here.attempt("token", "add", "@bob:there.test").returncode == 2


@pytest.mark.parametrize("running", [True, False])
def test_a_user_is_deactivated(start: Start, let_in: LetIn, running: bool) -> None:
    """No tokens, grants ended, lists dropped; other servers hear of it, at the next start at the latest."""
    federation = start()
    there = federation[THERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    befriend(bob, alice)
    bob.put_status("online")
    alice.sync()
    alice.presence_of(bob.user_id, presence="online")
    wire = Wire(there, bob)
    if not running:
        assert there.stop() == 0

    there.command("user", "deactivate", bob.user_id)
    if not running:
        there.start()

    alice.sync_until(notice(DENY, reason="revoked"))
    said = {str(wire.expect(kind)) for kind in (DENY,)} | set(wire.rest())
    assert said <= {DENY, DROP, "push offline", "unpoll"}
    assert (list_of(alice), observers_of(alice)) == ({}, set())
    assert seen_by(alice, bob) == "M_FORBIDDEN"
    assert whoami(bob) == 401
    refused = there.attempt("token", "add", bob.user_id)
    assert refused.returncode == 1
    assert "deactivated" in refused.stderr


def test_an_operator_reads_and_changes_subscriptions(shared: LocalFederation, let_in: LetIn) -> None:
    """The command line is a client for whoever has none, and `status` the first look in the morning."""
    here, there = shared[HERE], shared[THERE]
    alice, bob = let_in(shared, "alice@here.test", "bob@there.test")

    shown = here.command("subscriptions", alice.user_id, "--invite", bob.user_id)
    assert bob.user_id in shown
    assert "pending" in shown
    eventually(lambda: invites_of(bob) == {alice.user_id}, "the request arrives")
    shown = there.command("subscriptions", bob.user_id, "--accept", alice.user_id)
    assert "observers: 1" in shown
    eventually(lambda: list_of(alice) == {bob.user_id: "accepted"}, "the accept arrives")
    shown = json.loads(here.command("subscriptions", alice.user_id, "--json"))
    assert [(entry["user_id"], entry["state"]) for entry in shown["list"]] == [(bob.user_id, "accepted")]
    again = there.attempt("subscriptions", bob.user_id, "--accept", "@nobody:here.test")
    assert again.returncode == 1

    bob.put_status("online")
    status = there.command("status")
    assert THERE in status
    assert HERE in status, "its destinations"
    status = json.loads(there.command("status", "--json"))
    assert status["status"]["users"]["online"] == 1
    assert status["status"]["subscriptions"]["granted"] == 1
    there.stop()
    stopped = there.attempt("status")
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (1, False)
    there.start()


# --- reloading --------------------------------------------------------------------------------


def test_a_renewed_certificate_is_served_without_a_restart(start: Start, let_in: LetIn) -> None:
    """Certificates live for weeks, daemons for months; a bad one must not take the good one away."""
    federation = start()
    here, there = federation[HERE], federation[THERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    before, pid = served_certificate(here), here.pid

    _, certificate_file = federation.ca.issue(here.name)
    assert served_certificate(here) == before
    reload(here)
    eventually(lambda: served_certificate(here) != before, "the new certificate is served")
    renewed = served_certificate(here)

    certificate_file.write_text("no certificate")
    here.send_signal(signal.SIGHUP)
    eventually(lambda: "not reloaded" in here.log(), "it complains")
    assert (served_certificate(here), here.pid) == (renewed, pid)
    befriend(bob, alice)
    assert observers_of(alice) == {bob.user_id}
    assert there.transactions()[-1]["status"] == 200


def test_a_renewed_authority_is_trusted_without_a_restart(start: Start, let_in: LetIn) -> None:
    """A private authority is replaced now and then; a new one that is no good leaves the old one in place."""
    federation = start()
    here, there = federation[HERE], federation[THERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    pid = here.pid
    renewed = ThrowawayCA(here.folder / "renewed")
    key_file, certificate_file = renewed.issue(there.name)
    own_key, own_certificate = federation.ca.issue(there.name)
    key_file.replace(own_key)
    certificate_file.replace(own_certificate)
    reload(there)

    here.configure({"federation": {"ca_file": "renewed/ca.pem"}})
    good = renewed.ca_file.read_text()
    renewed.ca_file.write_text(good.replace(good[100:110], "!" * 10))
    here.send_signal(signal.SIGHUP)
    eventually(lambda: "not reloaded" in here.log(), "it complains")
    (complaint,) = [line for line in here.log().splitlines() if "not reloaded" in line]
    assert "federation.ca_file: " in complaint and "PEM" in complaint
    alice.change_list(invite=[bob.user_id])
    eventually(lambda: state_of(here, there) == "failing", "the new certificate is not believed")

    renewed.ca_file.write_text(good)
    reload(here)
    here.admin("POST", f"/destinations/{there.name}/retry")
    eventually(lambda: alice.user_id in invites_of(bob), "the invite arrives")
    assert here.pid == pid and "a restart is needed" not in here.log()


def test_a_server_that_is_denied_hears_no_more(start: Start, let_in: LetIn) -> None:
    """A reload ends pushes at once both ways; grants sleep, and wake when the server is allowed (Z-9)."""
    federation = start()
    here, there = federation[HERE], federation[THERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    befriend(bob, alice)
    alice.sync()
    bob.put_status("online", "before")
    alice.presence_of(bob.user_id, presence="online")
    wire = Wire(there, bob)

    there.configure({"federation": {"deny": [HERE]}})
    reload(there)
    bob.put_status("unavailable", "secret")
    wire.expect_silence()
    assert observers_of(bob) == {alice.user_id}, "the grant sleeps"
    alice.put_status("unavailable")
    eventually(lambda: here.transactions()[-1]["status"] == 403, "here.test is refused")
    assert seen_by(bob, alice) == "offline"

    there.configure({"federation": {"deny": []}})
    reload(there)
    wire.expect("push", presence="unavailable", status_msg="secret")
    alice.presence_of(bob.user_id, presence="unavailable")


def test_a_room_that_the_operator_denies_shares_no_more(start: Start, let_in: LetIn) -> None:
    """All of `rooms` follows a reload, in both directions and without a restart."""
    federation = start()
    there = federation[THERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    alice.sync()
    set_room(federation, "!meeting:here.test", [alice, bob])
    bob.put_status("online", "before")
    alice.presence_of(bob.user_id, presence="online")
    wire = Wire(there, bob)

    there.configure({"rooms": {"deny": ["!meeting:*"]}})
    reload(there)
    bob.put_status("unavailable", "secret")
    wire.expect_silence()
    assert seen_by(bob, alice) == "M_FORBIDDEN"

    there.configure({"rooms": {"deny": [], "deny_servers": ["elsewhere.test"]}})
    reload(there)
    alice.presence_of(bob.user_id, presence="unavailable")
    assert "a restart is needed" not in there.log()


def test_the_log_level_changes_while_it_runs(start: Start, let_in: LetIn) -> None:
    """Whoever hunts a bug wants debug lines now, and silence again without losing the patient."""
    federation = start({"log": {"level": "info"}})
    here = federation[HERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@there.test")
    befriend(alice, bob)
    assert " debug " not in here.log()

    here.configure({"log": {"level": "debug"}})
    reload(here)
    befriend(bob, alice)
    eventually(lambda: " debug " in here.log(), "debug lines")

    here.configure({"log": {"level": "info"}, "presence": {"idle_timeout": "9m"}})
    reload(here)
    assert "a restart is needed for what changed in: presence" in here.log()


def test_a_limit_that_a_reload_raises_holds_for_clients(start: Start, let_in: LetIn) -> None:
    """A body is measured once, by the limit of the moment: a second measure stayed at what it was."""
    federation = start({"limits": {"client_body": "2KiB"}})
    here = federation[HERE]
    (alice,) = let_in(federation, "alice@here.test")
    assert alice.put_status("online", "a" * 3000).status == 413

    here.configure({"limits": {"client_body": "8KiB"}})
    reload(here)

    assert alice.put_status("online", "a" * 3000).status == 200


def test_what_needs_a_restart_needs_it_after_a_second_reload_too(start: Start, let_in: LetIn) -> None:
    """A certificate hook sends the second SIGHUP: it must not put the half-done change into force unsaid."""
    federation = start({"lists": {"invite_policy": "ask"}})
    here = federation[HERE]
    alice, bob = let_in(federation, "alice@here.test", "bob@here.test")
    needed = "a restart is needed for what changed in: lists"

    here.configure({"lists": {"invite_policy": "accept"}})
    reload(here)
    reload(here)
    alice.change_list(invite=[bob.user_id])
    eventually(lambda: bob.subscriptions()["invites"] or observers_of(bob), "the invite has come")
    assert observers_of(bob) == set()
    assert here.log().count(needed) == 2

    here.configure({"lists": {"invite_policy": "ask"}})
    reload(here)
    assert here.log().count(needed) == 2


# --- helpers ----------------------------------------------------------------------------------


def reload(server: ServerProcess) -> None:
    """SIGHUP, and wait until it says so."""
    said = server.log(10_000_000).count("reloaded the configuration")
    server.send_signal(signal.SIGHUP)
    eventually(
        lambda: server.log(10_000_000).count("reloaded the configuration") > said, f"{server.name} reloads"
    )


def served_certificate(server: ServerProcess) -> str:
    """The certificate that the federation listener shows, PEM."""
    return ssl.get_server_certificate(("127.0.0.1", server.federation_port), timeout=10)


def state_of(server: ServerProcess, destination: ServerProcess) -> str | None:
    """How it stands with sending to `destination`; None where nothing was to be sent."""
    found = server.admin("GET", "/destinations").body["destinations"].get(destination.name, {})
    state: str | None = found.get("state")
    return state


def whoami(user: User) -> int:
    """The HTTP status of asking whose token it is."""
    return user.call("GET", "/_matrix/client/v3/account/whoami").status


def open_streams(server: ServerProcess, user: User) -> int:
    """How many streams a user has open."""
    devices = server.admin("GET", f"/users/{user.user_id}").body["devices"]
    return sum(device["streams"] for device in devices)


def a_process(server: ServerProcess, command: str, *arguments: str) -> "subprocess.Popen[str]":
    """A command of `fedpresence` with the server's configuration, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedpresence", command, "-c", str(server.config_file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=an_environment(),
    )


def run_to_its_end(*words: str) -> "subprocess.CompletedProcess[str]":
    """A command that should end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "fedpresence", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=an_environment(),
    )


def an_environment() -> dict[str, str]:
    """Ours, without settings for another daemon."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEDPRESENCE_")}
