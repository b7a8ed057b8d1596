import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedpresence import __version__
from fedpresence.config import load_config
from fedpresence.ops.cli import main
from fedpresence.ops.keys import generate_key_file, load_signing_keys
from fedpresence.storage.lock import DatabaseLock
from fedpresence.testing.child import Child

CONFIG = """
server_name: here.test
signing_key_path: here.signing.key
listeners:
  - endpoint: "tcp:0:interface=127.0.0.1"
    resources: [client, federation, admin]
"""
ALICE = "@alice:here.test"


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have variables of their own."""
    for name in [name for name in os.environ if name.startswith("FEDPRESENCE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with its key."""
    generate_key_file(tmp_path / "here.signing.key")
    path = tmp_path / "fedpresence.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, for what needs a reactor."""
    return subprocess.run(
        [sys.executable, "-m", "fedpresence", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("words", [["run", "-c", "x.yaml"], ["rig", "--servers", "a.test"]])
@pytest.mark.parametrize(("path", "fix"), [("none/x.json", "Make it first"), (".", "Name a file in it")])
def test_a_ready_file_that_cannot_be_is_said_before_anything_runs(
    words: list[str], path: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for it would wait for ever."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--ready-file", path])

    assert ended.value.code == 2
    assert fix in capsys.readouterr().err


def test_a_ready_file_that_cannot_be_written_ends_the_daemon(tmp_path: Path, config: Path) -> None:
    """A full disk, or as here a name that is too long: whoever waits for it is told by the exit code."""
    done = command("run", "-c", config, "--ready-file", tmp_path / ("x" * 252))

    assert done.returncode == 1
    assert "stopping: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_generated_config_and_key_are_all_that_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first three commands of every operator."""
    assert main(["generate-config", "--server-name", "here.test"]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "fedpresence.yaml"
    path.write_text(text, encoding="utf-8")

    before = main(["check-config", "-c", str(path)])
    told = capsys.readouterr().err
    key = tmp_path / "here.test.signing.key"
    made = main(["generate-key", "-o", str(key)])
    after = main(["check-config", "-c", str(path)])

    assert (before, made, after) == (78, 0, 0)
    assert told.startswith("signing_key_path: ")
    assert "generate-key" in told
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert load_config(path, {}, check_signing_key=load_signing_keys).server_name == "here.test"


def test_a_key_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost signing key cannot be had again."""
    key = tmp_path / "a.signing.key"
    main(["generate-key", "-o", str(key)])
    content = key.read_bytes()

    code = main(["generate-key", "-o", str(key)])

    assert code == 78
    assert key.read_bytes() == content
    assert "exists already" in capsys.readouterr().err


def test_check_config_says_everything_at_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per mistake, each beginning with its key; nothing that looks like a traceback."""
    config.write_text(CONFIG + "presence: {idle_timeout: soon}\nlog: {level: loud}\nx: 1\n", encoding="utf-8")

    code = main(["check-config", "-c", str(config)])

    lines = capsys.readouterr().err.splitlines()
    assert code == 78
    assert {line.partition(": ")[0] for line in lines} == {"presence.idle_timeout", "log.level", "x"}


def test_check_config_warns_and_still_passes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Z-7: an accept policy is allowed, and its price is told."""
    config.write_text(CONFIG + "lists: {invite_policy: accept}\n", encoding="utf-8")

    code = main(["check-config", "-c", str(config)])

    output = capsys.readouterr()
    assert code == 0
    assert "warning: lists.invite_policy" in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["check-config"],
        ["token", "list"],
        ["token", "add", ALICE],
        ["user", "deactivate", ALICE],
        ["subscriptions", ALICE],
        ["status"],
    ],
)
def test_a_wrong_config_ends_every_command_with_78(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Service managers do not restart on it, and the operator reads one line."""
    config.write_text("server_name: [", encoding="utf-8")

    code = main([*arguments, "-c", str(config)])

    assert code == 78
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["token"],
        ["generate-config"],
        ["doctor"],
        ["rig"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts tell a typing error from a failure."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "add", "alice"],
        ["token", "add", "@alice:there.test"],
        ["token", "add", "@al ice:here.test"],
        ["token", "add", ALICE, "--device", ""],
        ["token", "revoke", "@alice:there.test"],
        ["user", "deactivate", "@alice:there.test"],
        ["subscriptions", ALICE, "--invite", "bob"],
    ],
)
def test_a_user_who_cannot_be_ours_is_wrong_usage(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """A token for somebody else's user would be honoured by nobody."""
    code = main([*arguments, "-c", str(config)])

    assert code == 2
    assert capsys.readouterr().err.startswith("fedpresence: ")


def test_a_wrong_server_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed that somebody could save by mistake."""
    assert main(["generate-config", "--server-name", "not a name"]) == 2
    assert capsys.readouterr().out == ""


def test_status_says_how_to_switch_the_admin_api_on(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract asks for it; a bare "connection refused" sends people to the source."""
    off = main(["status", "-c", str(config)])
    told = capsys.readouterr().err
    monkeypatch.setenv("FEDPRESENCE_ADMIN__TOKEN", "0123456789abcdef")
    any_port = main(["status", "-c", str(config)])
    told_port = capsys.readouterr().err

    assert (off, any_port) == (1, 1)
    assert "admin.token" in told
    assert "--url" in told_port


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The first line of every bug report."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fedpresence {__version__}\n"


def test_a_token_is_printed_alone_and_kept_hashed(config: Path) -> None:
    """`TOKEN=$(fedpresence token add ...)`; the database is in backups."""
    added = command("token", "add", "-c", config, ALICE, "--device", "PHONE")
    listed = command("token", "list", "-c", config, "--json")

    token = added.stdout.strip()
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout == f"{token}\n"
    assert len(token) > 40
    (row,) = json.loads(listed.stdout)["tokens"]
    assert (row["user_id"], row["device_id"]) == (ALICE, "PHONE")
    kept = b"".join(path.read_bytes() for path in config.parent.glob("fedpresence.db*"))
    assert token.encode() not in kept


def test_tokens_are_revoked_by_device_or_all(config: Path) -> None:
    """A lost phone is one device; somebody who left is all of them."""
    for device in ("PHONE", "DESK", "CAR"):
        command("token", "add", "-c", config, ALICE, "--device", device)

    one = command("token", "revoke", "-c", config, ALICE, "--device", "PHONE")
    rest = command("token", "revoke", "-c", config, ALICE)
    none = command("token", "revoke", "-c", config, ALICE)
    listed = command("token", "list", "-c", config, ALICE)

    assert (one.returncode, one.stdout) == (0, "revoked: PHONE\n")
    assert (rest.returncode, rest.stdout) == (0, "revoked: CAR, DESK\n")
    assert (none.returncode, none.stderr) == (1, f"fedpresence: {ALICE} has no token\n")
    assert (listed.returncode, ALICE in listed.stdout) == (0, False)


def test_a_deactivated_user_gets_no_token_again(config: Path) -> None:
    """Deactivation is for good: their observers were told, and their grants are gone."""
    command("token", "add", "-c", config, ALICE)

    ended = command("user", "deactivate", "-c", config, ALICE)
    listed = command("token", "list", "-c", config, "--json")
    again = command("token", "add", "-c", config, ALICE)
    twice = command("user", "deactivate", "-c", config, ALICE)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(listed.stdout) == {"tokens": []}
    assert (again.returncode, again.stdout) == (1, "")
    assert "deactivated" in again.stderr
    assert (twice.returncode, "Traceback" in twice.stderr) == (1, False)


def test_a_daemon_that_does_not_run_is_told(config: Path) -> None:
    """Not a traceback of a refused connection."""
    text = CONFIG.replace("tcp:0", "tcp:1") + "admin: {token: 0123456789abcdef}\n"
    config.write_text(text, encoding="utf-8")

    status = command("status", "-c", config)
    subscriptions = command("subscriptions", "-c", config, ALICE)

    for asked in (status, subscriptions):
        assert (asked.returncode, asked.stdout) == (1, "")
        assert "Does the daemon run?" in asked.stderr


def test_a_daemon_is_found_on_the_port_that_the_system_chose(config: Path) -> None:
    """The contract lets a listener have port 0, and its commands have no address but the configuration."""
    with config.open("a", encoding="utf-8") as more:
        more.write("admin: {token: 0123456789abcdef}\n")
    daemon = Child("here.test", config.with_name("log"), config.with_name("ready.json"))
    assert command("token", "add", "-c", config, ALICE).returncode == 0
    daemon.begin(["-m", "fedpresence", "run", "-c", str(config), "--ready-file", str(daemon.ready_file)])
    try:
        daemon.wait_until_ready()

        status = command("status", "-c", config)
        invited = command("subscriptions", "-c", config, ALICE, "--invite", "@bob:here.test")
        deactivated = command("user", "deactivate", "-c", config, ALICE)
    finally:
        daemon.end(signal.SIGTERM)

    assert (status.returncode, status.stderr) == (0, "")
    assert "@bob:here.test  pending" in invited.stdout
    assert "by the running daemon" in deactivated.stdout
    assert "no daemon that runs" in command("status", "-c", config).stderr


def test_an_admin_api_that_the_command_line_cannot_find_is_not_called_off(config: Path) -> None:
    """It is switched on, at a port that only the ready file knows: switching it on again leads nowhere."""
    config.write_text(CONFIG + "admin: {token: 0123456789abcdef}\n", encoding="utf-8")
    daemon = DatabaseLock.take(config.with_name("fedpresence.db"))

    deactivated = command("user", "deactivate", "-c", config, ALICE)

    daemon.release()
    assert deactivated.returncode == 78
    assert "which is off" not in deactivated.stderr
    assert "--url" in deactivated.stderr


def test_the_doctor_needs_a_homeserver_to_ask(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A standalone daemon has nothing around it; saying so beats six questions in vain."""
    assert main(["doctor", "-c", str(config)]) == 78
    assert "homeserver.url: is missing" in capsys.readouterr().err
