import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from fedpresence.testing import Faults, pytest_plugin
from fedpresence.testing.rig.control import control_resource
from tests.testing.outside import run_pytest, write_files
from tests.testing.rig.standin import StandInRig

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parent.parent.parent / "docs"
IN_PYTHON = DOCS / "testing-your-homeserver.md"
OVER_HTTP = DOCS / "testing-over-http.md"
README = DOCS.parent / "README.md"
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
MISTAKE, FIX = "server.accept(observer=observed, observed=observer)", "server.accept(observer=observer, "
NOT_RUN_HERE = "pip install fedpresence"  # test_pytest_plugin.py installs it


def blocks(guide: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [match["text"] for match in FENCE.finditer(guide.read_text("utf-8")) if match[1] == language]


def files(guide: Path) -> dict[str, str]:
    """The Python blocks by the name in their first line."""
    found = {}
    for text in blocks(guide, "python"):
        first_line = text.partition("\n")[0]
        assert re.fullmatch(r"# \w+\.py", first_line), f"a block without its file's name: {first_line}"
        found[first_line.removeprefix("# ")] = text
    return found


def column(guide: Path, pattern: str) -> set[str]:
    """What the pattern finds at the beginning of the guide's table rows."""
    return set(re.findall(rf"^\| {pattern}", guide.read_text("utf-8"), re.MULTILINE))


def test_every_block_is_run_or_known() -> None:
    """An example that no test runs is wrong within a year."""
    scripts = blocks(IN_PYTHON, "sh")

    assert scripts == ["pip install fedpresence pytest\n", "pytest test_our_server.py\n"]
    assert blocks(OVER_HTTP, "sh")[0] == "pip install fedpresence\n"
    assert not blocks(OVER_HTTP, "python")
    for guide in (IN_PYTHON, OVER_HTTP):
        languages = {match["language"] for match in FENCE.finditer(guide.read_text("utf-8"))}
        assert languages <= {"python", "sh", "text", "json"}


def test_the_first_test_fails_as_the_guide_says_and_the_fix_mends_it(pytester: pytest.Pytester) -> None:
    """A newcomer compares the screen with the page, line by line."""
    (shown,) = blocks(IN_PYTHON, "text")
    expected = [line.replace("…", "*").replace("[", "[[]") for line in shown.splitlines()]
    write_files(pytester, files(IN_PYTHON))

    before = run_pytest(pytester, "test_our_server.py")
    server = pytester.path / "my_homeserver.py"
    assert MISTAKE in server.read_text()
    assert FIX in IN_PYTHON.read_text("utf-8")
    server.write_text(server.read_text().replace(MISTAKE, f"{FIX}observed=observed)"))
    after = run_pytest(pytester, "test_our_server.py")

    before.assert_outcomes(failed=1)
    before.stdout.fnmatch_lines(expected)
    after.assert_outcomes(passed=1)


def test_all_other_examples_in_python_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are where most people begin, by copying them."""
    (example,) = blocks(README, "python")
    examples = files(IN_PYTHON) | {"test_readme.py": example}
    count = sum(len(re.findall(r"def test_", text)) for text in examples.values()) - 1
    write_files(pytester, examples)

    # In a new folder hypothesis first makes its tables, for a second, and holds it against the strategy,
    # but where CI is set.
    monkeypatch.setenv("CI", "true")
    result = run_pytest(pytester, "--strict-markers", "--deselect", "test_our_server.py")

    result.assert_outcomes(passed=count, deselected=1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's examples need curl")
@pytest.mark.skipif(shutil.which("bash") is None, reason="the guide's examples need bash")
def test_the_examples_over_http_work_as_pasted(tmp_path: Path) -> None:
    """Whoever does not write Python has nothing else to go by."""
    (tmp_path / "my_homeserver.py").write_text(files(IN_PYTHON)["my_homeserver.py"])
    starter = tmp_path / "my-homeserver"
    starter.write_text(
        f"#!{sys.executable}\n"
        "import os, shutil, sys\n"
        "from pathlib import Path\n"
        "from fedpresence.testing import ThrowawayCA\n"
        "ca = ThrowawayCA(Path('my-tls'))\n"
        "shutil.copy(ca.ca_file, 'my-ca.pem')\n"
        "files = map(str, ca.issue('yours.test'))\n"
        "os.execv(sys.executable, [sys.executable, 'my_homeserver.py', 'yours.test', *files, sys.argv[1]])\n"
    )
    starter.chmod(0o700)
    scripts = [text for text in blocks(OVER_HTTP, "sh") if not text.startswith(NOT_RUN_HERE)]
    script = "set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "\n".join(scripts)

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert in_order(
        done.stdout,
        r'"last_active_ago":1000,"currently_active":true',
        r'"presence":"unavailable","last_active_ago":36\d{5}',
        r"200: accept @bob:there\.test → @alice:here\.test",
        r'"from":"there\.test","to":"here\.test"',
        r'"status_msg":"back again"',
        r'"running":false',
        r'"running":true',
        r'"status":200',
        r'"status":401',
        r'"verified":true',
        r'"clock":"real"',
        r"→ yours\.test .* 200.*: invite @alice:127\.0\.0\.1:\d+ → @you:yours\.test",
    ), done.stdout


def test_the_tables_name_every_fault_fixture_and_key() -> None:
    """A fault that the page does not name is one that nobody uses."""
    faults = {field.name for field in dataclasses.fields(Faults)}
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("fedpresence_")}

    assert column(IN_PYTHON, r"`(\w+)=") == faults | set(pytest_plugin.KEYS)
    assert column(OVER_HTTP, r'`"(\w+)": ') == faults
    assert column(IN_PYTHON, r"`(fedpresence_\w+)`") == fixtures


def test_the_tables_name_every_control_request() -> None:
    """The page is the reference of the control API, so each path that it has stands there."""
    page = OVER_HTTP.read_text("utf-8").partition("## The control API")[2]
    top = {name.decode() for name in control_resource(StandInRig()).children}

    assert top <= set(re.findall(r"`(?:GET|PUT|POST|DELETE) /(\w+)", page))


def in_order(text: str, *patterns: str) -> bool:
    """Whether the text has a match of each, one after the other."""
    return re.search(joined(patterns), text, re.DOTALL) is not None


def joined(patterns: Iterable[str]) -> str:
    """One pattern of several; a dot in them is still no newline."""
    return ".*?".join(f"(?-s:{pattern})" for pattern in patterns)
