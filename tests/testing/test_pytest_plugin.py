import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from fedpresence import testing
from tests.testing.outside import run_pytest, write_files

pytest_plugins = ["pytester"]

CHECKOUT = Path(__file__).parent.parent.parent
WHOLE_PACKAGE = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def python(script: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what it costs ---------------------------------------------------------------------------


def test_loading_the_plugin_imports_the_standard_library_alone() -> None:
    """Every pytest run of whoever has installed the package pays for it, whatever it tests."""
    loaded = json.loads(
        python(
            "import json, sys, pytest\n"
            "before = set(sys.modules)\n"
            "import fedpresence.testing.pytest_plugin\n"
            "print(json.dumps(sorted(set(sys.modules) - before)))"
        )
    )

    ours = [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names]
    assert ours == ["fedpresence", "fedpresence.testing", "fedpresence.testing.pytest_plugin"]


def test_a_project_without_rigs_loads_nothing_more(pytester: pytest.Pytester) -> None:
    """Failures of other people's tests are not our business either."""
    write_files(
        pytester,
        {
            "test_theirs.py": (
                "import sys\n"
                "def test_fails():\n"
                "    assert 0\n"
                "def test_what_is_loaded():\n"
                "    names = ('twisted', 'hypothesis', 'yaml', 'fedpresence.testing.rig')\n"
                "    assert not [name for name in names if name in sys.modules]\n"
            )
        },
    )

    result = run_pytest(pytester)

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*fedpresence wire*")


# --- the names -------------------------------------------------------------------------------


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    """A name in the list that cannot be imported is found by a user, at the worst moment."""
    values = {name: getattr(testing, name) for name in [*testing.__all__, "strategies"]}

    assert all(value is not None for value in values.values())
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError, match="has no attribute 'Rigg'"):
        getattr(testing, "Rigg")  # noqa: B009  mypy rightly refuses it written as an attribute


def test_strategies_alone_need_hypothesis() -> None:
    """It is in the extra `test`; whoever has not got it reads which one to install."""
    said = python(
        "import sys\n"
        "sys.modules['hypothesis'] = None\n"
        "from fedpresence.testing import *\n"
        "from fedpresence.testing import FakeHomeserver, Rig, TwistedRig\n"
        "try:\n"
        "    from fedpresence.testing import strategies\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )

    assert "pip install 'fedpresence[test]'" in said


# --- the fixtures ----------------------------------------------------------------------------


def test_the_fixtures_are_of_one_rig_as_the_nearest_marker_orders_it(pytester: pytest.Pytester) -> None:
    """Without any conftest, and where a project insists on known markers."""
    write_files(
        pytester,
        {
            "test_fixtures.py": """
import pytest

pytestmark = pytest.mark.fedpresence(servers=["a.test", "b.test", "c.test"], seed=1)


@pytest.mark.fedpresence(config={"lists": {"invite_policy": "accept"}})
class TestOne:
    @pytest.mark.fedpresence(seed=2)
    def test_all_of_them(
        self, fedpresence_pair, fedpresence_server, fedpresence_homeserver, fedpresence_rig
    ):
        rig = fedpresence_rig
        a, b = fedpresence_pair
        assert [*rig.servers] == ["a.test", "b.test", "c.test"]
        assert [*rig.users] == ["@alice:a.test", "@bob:b.test", "@carol:c.test"]
        assert (a, b) == (rig["a.test"], rig["b.test"]) and a is fedpresence_server
        assert fedpresence_homeserver is rig.homeserver("fake.test")
        assert rig.seed == 2 and rig.clock == "virtual"

        alice = a.user("alice")
        alice.change_list(invite=["@bob:b.test"])
        rig.advance(seconds=1)
        assert alice.subscriptions()["list"][0]["state"] == "accepted"


@pytest.mark.fedpresence(servers=["only.test"], users=["@eve:only.test"], clock="real")
def test_other_users(fedpresence_server, request):
    assert fedpresence_server.user("eve").put_status("online").status == 200
    assert request.getfixturevalue("fedpresence_rig").clock == "real"
"""
        },
    )

    result = run_pytest(pytester, "--strict-markers", "-W", "error::pytest.PytestWarning")

    result.assert_outcomes(passed=2)


def test_a_failure_shows_wire_log_and_seed_and_a_pass_does_not(pytester: pytest.Pytester) -> None:
    """Without them, the first step after every failure is to run it again with prints."""
    write_files(
        pytester,
        {
            "test_failing.py": """
import pytest

from fedpresence.testing import Rig


@pytest.fixture(scope="module")
def own():
    with Rig(servers=("own.test", "other.test"), users=("alice@own.test",)) as rig:
        yield rig


@pytest.fixture
def broken(fedpresence_rig):
    fedpresence_rig.user("alice@here.test").change_list(invite=["@broken:there.test"])
    fedpresence_rig.settle()
    raise RuntimeError("setup of the test's own")


@pytest.fixture
def asked_late(request):
    return request.getfixturevalue("fedpresence_rig")


def test_passes(fedpresence_rig):
    fedpresence_rig.user("alice@here.test").change_list(invite=["@passed:there.test"])
    fedpresence_rig.settle()


def test_fails(asked_late):
    asked_late.link("here.test", "there.test", down=True)
    asked_late.advance(minutes=5)
    assert 0, f"seed {asked_late.seed}"


def test_fails_in_setup(broken):
    pass


def test_fails_with_its_own(own):
    own.user("alice@own.test").change_list(invite=["@own:other.test"])
    own.settle()
    assert 0


def test_fails_after_the_end(fedpresence_rig):
    fedpresence_rig.kill()
    assert 0
"""
        },
    )

    result = run_pytest(pytester, "--fedpresence-seed", "77")

    result.assert_outcomes(passed=1, failed=3, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "E*RuntimeError: setup of the test's own",
            "*here.test → there.test * 200: invite @alice:here.test → @broken:there.test",
            "*seed 77",
            "*(nothing was sent between servers)",
            "* fedpresence wire, --fedpresence-seed 77 *",
            "*own.test → other.test * 200: invite @alice:own.test → @own:other.test",
            "* fedpresence rig log *",
        ]
    )
    result.stdout.no_fnmatch_line("*@passed:there.test*")


def test_what_cannot_be_ordered_is_said_in_a_line(pytester: pytest.Pytester) -> None:
    """A misspelt key that is quietly ignored costs an afternoon."""
    write_files(
        pytester,
        {
            "test_wrong.py": """
import pytest


@pytest.mark.fedpresence(server=["a.test"])
def test_unknown_key(fedpresence_rig):
    pass


@pytest.mark.fedpresence(["a.test"])
def test_no_key(fedpresence_rig):
    pass


@pytest.mark.fedpresence(servers="a.test")
def test_no_list(fedpresence_rig):
    pass


@pytest.mark.fedpresence(servers=["a.test"])
def test_one_alone(fedpresence_pair):
    pass


@pytest.mark.fedpresence(config={"lists": {"invite_policy": "perhaps"}})
def test_bad_config(fedpresence_rig):
    pass
"""
        },
    )

    result = run_pytest(pytester)

    result.assert_outcomes(errors=5)
    result.stdout.fnmatch_lines(
        [
            "marker fedpresence: 'server' is none; known are servers, users, clock*",
            "marker fedpresence: it takes names alone; known are*",
            "marker fedpresence: servers must be a list or a tuple of names",
            "fedpresence_pair: the marker orders one server alone",
            "*lists.invite_policy: *perhaps*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py:*")
    result.stdout.no_fnmatch_line("During handling of the above exception*")


def test_a_rig_lasts_for_the_scope_that_the_ini_file_names(pytester: pytest.Pytester) -> None:
    """A module of a hundred small tests need not start a hundred rigs."""
    write_files(
        pytester,
        {
            "test_scope.py": """
import pytest

pytestmark = pytest.mark.fedpresence(servers=["a.test"])
seen = []


@pytest.mark.parametrize("number", [1, 2])
def test_once(fedpresence_rig, fedpresence_server, number):
    seen.append(fedpresence_rig.control_url)
    assert len(set(seen)) == 1 and [*fedpresence_rig.servers] == ["a.test"]
"""
        },
    )

    once = run_pytest(pytester, "-o", "fedpresence_scope=module")
    wrong = run_pytest(pytester, "-o", "fedpresence_scope=month")

    once.assert_outcomes(passed=2)
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*fedpresence_scope: 'month' is none of function, class, module*"])


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_rigs_run_side_by_side(pytester: pytest.Pytester) -> None:
    """Nothing of a rig is shared, so `pytest -n` works as it is."""
    write_files(
        pytester,
        {
            "test_many.py": (
                "import pytest\n"
                "@pytest.mark.parametrize('number', range(4))\n"
                "def test_one(fedpresence_pair, number):\n"
                "    assert all(server.is_running for server in fedpresence_pair)\n"
                "    assert number\n"
            )
        },
    )

    result = run_pytest(pytester, "-p", "xdist", "-n", "2")

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["* fedpresence wire, *"])


# --- the package -----------------------------------------------------------------------------


def test_an_outside_project_has_the_fixtures_once_the_package_is_installed(tmp_path: Path) -> None:
    """`pip install fedpresence` and nothing else: what the guide promises in its first lines."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building a package without the network needs setuptools in this interpreter")
    installed = install(tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_theirs.py").write_text(
        "import fedpresence\n"
        "def test_a_pair(fedpresence_pair, fedpresence_rig, fedpresence_homeserver):\n"
        f"    assert fedpresence.__file__.startswith({str(installed)!r})\n"
        "    alice = fedpresence_pair[0].user('alice')\n"
        "    alice.change_list(invite=['@bob:there.test'])\n"
        "    fedpresence_rig.advance(minutes=1)\n"
        "    assert fedpresence_rig.transactions('here.test', 'there.test')[0]['status'] == 200\n"
    )
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=False, symlinks=True)
    paths = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])

    done = subprocess.run(
        [fresh / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def install(folder: Path) -> Path:
    """Where the package was installed from a copy of this checkout, without the network.

    From a wheel where this interpreter can build one, else as setuptools lays the files out.
    """
    source, installed = folder / "source", folder / "installed"
    source.mkdir()
    for name in WHOLE_PACKAGE:
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(
        CHECKOUT / "fedpresence", source / "fedpresence", ignore=shutil.ignore_patterns("__pycache__")
    )
    if can_build_wheels():
        build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        run([*build, "--wheel-dir", str(folder), str(source)], source)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installed)
    else:
        installed.mkdir()
        command = ["setup.py", "--quiet", "build", "--build-lib", str(installed)]
        run([*command, "egg_info", "--egg-base", str(installed)], source)
    return installed


def can_build_wheels() -> bool:
    """Whether setuptools makes wheels here: by itself since 70.1, else with `wheel`."""
    if importlib.util.find_spec("pip") is None:
        return False
    major, minor = importlib.metadata.version("setuptools").split(".")[:2]
    return (int(major), int(minor)) >= (70, 1) or importlib.util.find_spec("wheel") is not None


def run(arguments: list[str], folder: Path) -> None:
    """Run Python there; AssertionError with its words where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
