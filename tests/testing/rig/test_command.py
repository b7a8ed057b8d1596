import argparse
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from fedpresence.errors import ConfigError
from fedpresence.ops.cli import main
from fedpresence.testing.child import Child
from fedpresence.testing.http import request
from fedpresence.testing.rig.command import Order, WrongUsage, order_of

SERVERS = ["--servers", "a.test,b.test"]
USERS = ["--users", "alice@a.test,@bob:b.test"]


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have variables of their own."""
    for name in [name for name in os.environ if name.startswith("FEDPRESENCE_")]:
        monkeypatch.delenv(name)


def order(**changes: Any) -> Order:
    """What is ordered with these arguments, beside two servers."""
    arguments: dict[str, Any] = {
        "servers": "a.test,b.test",
        "users": "",
        "ready_file": None,
        "clock": "virtual",
        "dir": None,
        "seed": None,
        "config": None,
        "addressable": False,
        "stop_at_eof": False,
        "remove_at_eof": None,
    }
    return order_of(argparse.Namespace(**arguments | changes))


def rig(folder: Path, *arguments: object) -> Child:
    """A rig's process, which has begun."""
    child = Child("the rig", folder / "log.txt", folder / "ready.json")
    words = ["-m", "fedpresence", "rig", "--ready-file", str(child.ready_file), *map(str, arguments)]
    child.begin(words)
    return child


def ready(child: Child) -> dict[str, Any]:
    """Its ready file, once it is there."""
    child.wait_until_ready(60)
    content: dict[str, Any] = json.loads(child.ready_file.read_text())
    return content


# --- the arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--servers", ""],
        ["--servers", "a.test,,b.test"],
        ["--servers", "a.test,a.test"],
        ["--servers", "a b"],
        [*SERVERS, "--clock", "broken"],
        [*SERVERS, "--seed", "x"],
        [*SERVERS, "--users", "alice@c.test"],
        [*SERVERS, "--users", "alice"],
        [*SERVERS, "--users", "@alice@a.test"],
        [*SERVERS, "--users", "a lice@a.test"],
        [*SERVERS, "--users", "alice@a.test,@alice:a.test"],
        [*SERVERS, "--addressable"],
        [*SERVERS, "--remove-at-eof", "data"],
        [*SERVERS, "--no-such-thing"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A script tells its own mistake from a rig that failed; nothing was started."""
    try:
        code: object = main(["rig", *arguments])
    except SystemExit as exit:  # argparse's own
        code = exit.code

    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_input_that_is_closed_cannot_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service manager closes it; the rig would wait for what it never began to read."""
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of it

    assert main(["rig", *SERVERS, "--stop-at-eof"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_users_are_named_both_ways() -> None:
    """As an address that people type, and as Matrix writes it."""
    options = order(users="alice@a.test, @bob:b.test").options

    assert options.users == ("@alice:a.test", "@bob:b.test")


def test_a_wrong_user_is_told_how_to_be_right() -> None:
    """The message has the fix in it."""
    with pytest.raises(WrongUsage, match=r"--users: 'alice@c\.test' .* alice@a\.test or @alice:a\.test"):
        order(users="alice@c.test")


def test_a_seed_is_new_unless_it_is_given() -> None:
    """A run that failed by chance is run again with the seed that it printed."""
    assert order(seed=7).options.seed == 7
    assert order().options.seed != order().options.seed


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server_name: c.test", "server_name"),
        ("listeners: []", "listeners"),
        ("signing_key_path: x.key", "signing_key_path"),
        ("federation: {ca_file: ca.pem}", "federation.ca_file"),
        ("federation: {batch_window: 1s, resolve: {x.test: '127.0.0.1:1'}}", "federation.resolve"),
        ("log: {level: loud}", "log.level"),
        ("presence: {}\npresence: {}", "presence"),
    ],
)
def test_what_the_config_may_not_say_is_named(tmp_path: Path, text: str, key: str) -> None:
    """What the rig decides for each server itself cannot be given to all of them."""
    config = tmp_path / "rig.yaml"
    config.write_text(text)

    with pytest.raises(ConfigError) as raised:
        order(config=config)

    assert [problem.key for problem in raised.value.problems] == [key]


def test_a_config_that_cannot_be_read_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code of every wrong configuration."""
    assert main(["rig", *SERVERS, "--config", str(tmp_path / "none.yaml")]) == 78
    assert "none.yaml" in capsys.readouterr().err


def test_the_log_is_quiet_unless_told_otherwise(tmp_path: Path) -> None:
    """A rig's log stands beside a failing test: it has what is odd, not the diary of every server."""
    config = tmp_path / "rig.yaml"
    config.write_text("log: {level: debug}")

    assert order().log.level == "warn"
    assert order(config=config).log.level == "debug"
    assert order(config=config).log.format == "text"


# --- the process --------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is begun in the background of a shell, or by nohup, ignores signals, and so would its rigs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    before_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before_up)
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_rig_from_its_beginning_to_its_end(tmp_path: Path, number: signal.Signals) -> None:
    """The contract's ready file, everything in it answers, and nothing is left behind."""
    child = rig(tmp_path, *SERVERS, *USERS, "--seed", 5)

    content = ready(child)
    turned = request("POST", f"{content['control_url']}/advance", {"ms": 5})
    answers = [
        request("GET", f"{user['client_url']}/_matrix/client/v3/account/whoami", token=user["access_token"])
        for user in content["users"].values()
    ]
    server = content["servers"]["a.test"]
    status = request(
        "GET", f"{server['admin_url']}/_fedpresence/admin/v1/status", token=server["admin_token"]
    )
    unverified = ssl.create_default_context(cafile=content["ca_file"])
    unverified.check_hostname = False  # the certificate is a.test's, and the address is not
    with urlopen(f"{server['federation_url']}/_matrix/key/v2/server", context=unverified) as key_answer:
        keys = json.load(key_answer)
    code = child.end(number)

    assert content["clock"] == "virtual"
    assert content["seed"] == 5
    assert turned.body["now_ms"] > 5
    assert [answer.body["user_id"] for answer in answers] == ["@alice:a.test", "@bob:b.test"]
    assert status.body["server_name"] == "a.test"
    assert keys["verify_keys"] == {server["key_id"]: {"key": server["verify_key"]}}
    assert Path(server["signing_key_path"]).name.endswith(".key")
    assert code == 0
    assert not child.ready_file.exists()
    assert not Path(content["ca_file"]).exists()
    assert child.log().splitlines() == ["seed 5", f"control {content['control_url']}"]


def test_a_rig_that_is_stopped_while_it_starts_ends_well(tmp_path: Path) -> None:
    """Somebody presses Ctrl-C at once."""
    child = rig(tmp_path, "--servers", ",".join(f"s{number}.test" for number in range(8)))
    deadline = time.monotonic() + 30
    while "seed" not in child.log() and time.monotonic() < deadline:
        time.sleep(0.005)  # another process's output cannot be awaited

    assert child.end(signal.SIGTERM) == 0
    assert not child.ready_file.exists()
    assert "Traceback" not in child.log()


def test_a_ready_file_that_a_crash_left_fools_nobody(tmp_path: Path) -> None:
    """Scripts wait for the file to appear."""
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("{}")
    words = [
        sys.executable,
        "-m",
        "fedpresence",
        "rig",
        "--servers",
        "a.test",
        "--ready-file",
        str(ready_file),
    ]

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        is_stale = ready_file.exists() and ready_file.read_text() == "{}"
        child.terminate()

    assert said.startswith("seed ")
    assert not is_stale


def test_data_in_a_folder_of_its_own_outlives_the_rig(tmp_path: Path) -> None:
    """What went wrong can be looked at afterwards, and gone on with."""
    data = tmp_path / "data"
    first = rig(tmp_path, "--servers", "a.test", "--dir", data)
    before = ready(first)
    first_code = first.end(signal.SIGTERM)
    kept = data.is_dir()
    second = rig(tmp_path, "--servers", "a.test", "--dir", data)
    after = ready(second)
    second_code = second.end(signal.SIGTERM)

    assert (first_code, second_code, kept) == (0, 0, True)
    assert before["servers"]["a.test"]["key_id"] == after["servers"]["a.test"]["key_id"]


def test_a_wrong_key_in_the_config_is_78_and_named(tmp_path: Path) -> None:
    """The servers' own check, told as every wrong configuration is."""
    config = tmp_path / "rig.yaml"
    config.write_text("presence: {idle_tiemout: 5m}\n")

    done = subprocess.run(
        [sys.executable, "-m", "fedpresence", "rig", *SERVERS, "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 78
    assert done.stderr.startswith("presence.idle_tiemout: ")
    assert "Traceback" not in done.stderr


def test_a_rig_that_cannot_run_is_1(tmp_path: Path) -> None:
    """Its folder is a file."""
    child = rig(tmp_path, *SERVERS, "--dir", tmp_path / "log.txt")

    assert child.end(None, 60) == 1
    assert "stopping: " in child.log()
    assert "Traceback" not in child.log()


def test_an_addressable_rig_is_found_by_its_names(tmp_path: Path) -> None:
    """A foreign server connects to the address that the name is, and the certificate is right."""
    child = rig(tmp_path, *SERVERS, *USERS, "--clock", "real", "--addressable")

    content = ready(child)
    (name, server), *_ = content["servers"].items()
    context = ssl.create_default_context(cafile=content["ca_file"])
    with urlopen(f"https://{name}/_matrix/key/v2/server", context=context) as answer:
        keys = json.load(answer)
    stop = request("POST", f"{content['control_url']}/servers/a.test/stop")
    refused = request("POST", f"{content['control_url']}/advance", {"ms": 1})
    code = child.end(signal.SIGTERM)

    assert server["alias"] == "a.test"
    assert keys["server_name"] == name
    assert f"@alice:{name}" in content["users"]
    assert stop.body["running"] is False
    assert (refused.status, refused.body["errcode"]) == (400, "M_UNKNOWN")
    assert code == 0
