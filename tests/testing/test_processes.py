import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedpresence.testing.child import Child
from fedpresence.testing.processes import free_port
from tests.testing.orphans import wait_until_gone


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_servers_end_with_whoever_started_them(tmp_path: Path) -> None:
    """A test run that is killed must not leave daemons behind for ever, paused ones neither."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fedpresence.testing import LocalFederation\n"
        "federation = LocalFederation(Path(sys.argv[1]), ['here.test', 'there.test']).__enter__()\n"
        "federation['there.test'].send_signal(signal.SIGSTOP)\n"
        "print(*(server.pid for server in federation), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, timeout=60, check=False
    )
    pids = [int(pid) for pid in killed.stdout.split()]

    assert killed.returncode == -signal.SIGKILL and len(pids) == 2
    for pid in pids:
        wait_until_gone(pid)


def test_a_process_that_is_ended_ends_as_it_was_told(tmp_path: Path) -> None:
    """That we let go of it afterwards is no second end, for it or for the next one."""
    child = Child("a child", tmp_path / "log.txt", tmp_path / "ready")

    child.begin(["-c", "raise SystemExit(7)"])
    by_itself = child.end(None)
    child.begin(["-c", "import time; time.sleep(60)"])
    by_signal = child.end(signal.SIGTERM)

    assert (by_itself, by_signal) == (7, -signal.SIGTERM)
    assert not child.is_running


def test_no_port_is_had_twice() -> None:
    """Two of one federation's servers, or of two test runs whose random numbers have one seed."""
    words = "import random; random.seed(1); from fedpresence.testing.processes import free_port; "
    words += "print(*[free_port() for _ in range(1000)])"
    here, there = (subprocess.check_output([sys.executable, "-c", words], text=True).split() for _ in "ab")

    assert len(set(here)) == 1_000
    assert here != there


def test_a_free_port_is_none_that_the_system_gives_to_connections() -> None:
    """Between its choice and its use a busy machine opens hundreds, and one would have taken it."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists():
        pytest.skip("the system does not say which ports it gives")
    first, last = map(int, given.read_text().split())

    ports = {free_port() for _ in range(50)}

    assert not ports.intersection(range(first, last + 1))
