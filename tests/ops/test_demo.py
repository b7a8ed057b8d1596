import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_demo_that_is_stopped_leaves_no_server_behind(tmp_path: Path) -> None:
    """`timeout 10 fedpresence demo`, for example."""
    words = [sys.executable, "-m", "fedpresence", "demo"]
    environ = os.environ | {"TMPDIR": str(tmp_path)}

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ) as demo:
        assert demo.stdout is not None
        try:
            while "there.test answers" not in (line := demo.stdout.readline()):
                assert line, "it ended"
            pids = [json.loads(path.read_text())["pid"] for path in tmp_path.glob("*/*/ready.json")]
            demo.send_signal(signal.SIGTERM)
            demo.wait(30)
        finally:
            demo.kill()

    assert demo.returncode == 1
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(tmp_path.iterdir()) == []
