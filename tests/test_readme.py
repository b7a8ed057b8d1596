import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedpresence.testing.processes import free_port

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- (?P<name>\w+) -->\n```sh\n(?P<script>.*?)```", re.DOTALL)


def blocks(name: str) -> list[str]:
    return [match["script"] for match in BLOCK.finditer(README.read_text()) if match["name"] == name]


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_two_commands_are_one_line_each(name: str) -> None:
    """They are pasted whole, and the checks run the second as it stands."""
    (script,) = blocks(name)

    assert len(script.strip().splitlines()) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's example needs curl")
def test_the_five_minutes_work_as_pasted(tmp_path: Path) -> None:
    """A newcomer pastes these lines; what they print is the first thing they see of us."""
    script = "set -eu\n" + "\n".join(blocks("quickstart"))
    for port in ("8008", "8448", "8009"):
        script = script.replace(f":{port}", f":{free_port()}")
    ports = re.findall(r"127\.0\.0\.1:(\d+)", script)
    client_port, metrics_port = ports[0], ports[-1]
    generate = "generate-config --server-name example.test"
    edits = f"s/tcp:8008/tcp:{client_port}/; s/tcp:8448/tcp:{free_port()}/; s/tcp:8009/tcp:{metrics_port}/"
    script = script.replace(generate, f"{generate} | sed '{edits}'")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert '"errcode":"M_FORBIDDEN"' in done.stdout
    assert '"presence":"online"' in done.stdout
    assert '"status_msg":"Fika"' in done.stdout
    assert re.search(r"@bob:example\.test.*accepted|accepted.*@bob:example\.test", done.stdout)
    assert 'fedpresence_users{state="online"} 1.0' in done.stdout
