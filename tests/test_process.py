import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.python.threadpool import ThreadPool

from fedpresence.config import load_config
from fedpresence.ops.keys import generate_key_file
from fedpresence.process import fitted, leave_behind, remove_ready_file, remove_stale_ready_file

PATIENCE_S = 60.0
CONFIG = """
server_name: here.test
signing_key_path: here.test.signing.key
listeners: [{endpoint: "tcp:0:interface=127.0.0.1", resources: [client]}]
"""


def _pid_of_nobody() -> int:
    """A process ID that was somebody's a moment ago."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    return gone.pid


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "x"}', '{"pid": 0}', '{"pid": -1}', "\x80"])
def test_a_ready_file_of_nobody_is_taken_away(tmp_path: Path, content: str) -> None:
    """Whoever waits for the file to appear must not take what a crash left for the new process's word."""
    ready_file = tmp_path / "ready.json"
    ready_file.write_text(content)

    remove_stale_ready_file(ready_file)

    assert not ready_file.exists()


@pytest.mark.parametrize(("whose", "stays"), [("nobody", False), ("ours", False), ("another", True)])
def test_a_ready_file_goes_with_its_process(tmp_path: Path, whose: str, stays: bool) -> None:
    """Another daemon's is not ours to take; in a container each daemon has the same process ID."""
    pids = {"nobody": _pid_of_nobody, "ours": os.getpid, "another": os.getppid}
    ready_file = tmp_path / "ready.json"
    ready_file.write_text(json.dumps({"pid": pids[whose]()}))

    remove_stale_ready_file(ready_file)

    assert ready_file.exists() is stays


@pytest.mark.parametrize(
    ("asked", "files", "taken"), [(10_000, 64, 16), (20, 64, 16), (16, 64, 16), (10_000, 1_000_000, 10_000)]
)
def test_no_more_connections_are_taken_than_there_are_files_for(
    tmp_path: Path, asked: int, files: int, taken: int
) -> None:
    """Else silent ones had them all long before any of them was asked to give way."""
    generate_key_file(tmp_path / "here.test.signing.key")
    path = tmp_path / "config.yaml"
    listeners = "[{endpoint: 'tcp:0', resources: [client]}, {endpoint: 'tcp:0', resources: [metrics]}]"
    path.write_text(
        f"{CONFIG.rsplit('listeners', 1)[0]}listeners: {listeners}\nlimits: {{connections: {asked}}}\n"
    )
    config = load_config(path, {})

    assert fitted(config, files).limits.connections == taken


def test_where_there_is_no_ready_file_nothing_is_done(tmp_path: Path) -> None:
    """Nor where the path cannot be one: writing it will say so."""
    remove_stale_ready_file(tmp_path / "ready.json")
    remove_stale_ready_file(tmp_path)


@pytest.mark.parametrize(("whose", "stays"), [("ours", False), ("a successor's", True)])
def test_at_the_end_a_ready_file_is_taken_away_by_who_wrote_it(
    tmp_path: Path, whose: str, stays: bool
) -> None:
    """A successor may be ready before its predecessor has ended: who waits for it must find its file."""
    ready_file = tmp_path / "ready.json"
    ready_file.write_text(json.dumps({"pid": os.getpid() if whose == "ours" else os.getppid()}))

    remove_ready_file(ready_file)
    remove_ready_file(tmp_path / "no.json")

    assert ready_file.exists() is stays


def test_a_stop_waits_for_no_name_that_is_being_looked_up() -> None:
    """A zone that does not answer blocks a thread for half a minute, and anybody can name it to us."""
    begun, answered = threading.Event(), threading.Event()
    pool = ThreadPool(minthreads=0, maxthreads=1)
    leave_behind(pool)
    pool.start()
    pool.callInThread(begun.set)
    for _ in range(3):
        pool.callInThread(answered.wait)
    assert begun.wait(10)
    too_late = threading.Timer(10, answered.set)
    too_late.start()

    pool.stop()

    assert not answered.is_set()
    too_late.cancel()
    answered.set()


def test_a_reload_asked_for_during_the_start_is_done_after_it(tmp_path: Path) -> None:
    """A certificate's hook right after the start would end the daemon, and systemd calls that clean."""
    generate_key_file(tmp_path / "here.test.signing.key")
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    os.mkfifo(again := tmp_path / "again.yaml")
    with _daemon(config) as process:
        with config.open("w") as first:  # opens once the daemon reads it: the start has begun
            again.rename(config)
            process.send_signal(signal.SIGHUP)
            first.write(CONFIG)
        with config.open("w") as second:  # opens once it is read again: the reload
            second.write(CONFIG)
        process.send_signal(signal.SIGTERM)

        assert process.wait(PATIENCE_S) == 0


def test_a_mistake_is_told_though_a_reload_was_asked_for_during_the_start(tmp_path: Path) -> None:
    """78 is what keeps systemd from starting it again for ever."""
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    with _daemon(config) as process:
        with config.open("w") as first:
            process.send_signal(signal.SIGHUP)
            first.write("nonsense: 1")

        assert process.wait(PATIENCE_S) == 78


@contextmanager
def _daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon whose configuration is a named pipe: who writes it knows when it is read."""
    with subprocess.Popen([sys.executable, "-m", "fedpresence", "run", "-c", str(config)]) as process:

        def end() -> None:
            process.kill()
            os.close(os.open(config, os.O_RDONLY | os.O_NONBLOCK))  # whoever waits to write it goes on

        overdue = threading.Timer(PATIENCE_S, end)
        overdue.start()
        try:
            yield process
        finally:
            overdue.cancel()
            process.kill()
