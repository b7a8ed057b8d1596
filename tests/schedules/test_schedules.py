import subprocess
import sys
from pathlib import Path

from tests.schedules.schedule import schedule_of

ROOT = Path(__file__).parents[2]
SEEDS = "0-24"  # a thousand by hand: python -m tests.schedules --seeds 0-999 --jobs 2
MAX_STEPS = 30
TIMEOUT_S = 300


def test_whatever_fails_nothing_leaks_nothing_is_forgotten_and_all_agree_in_the_end() -> None:
    """Subscriptions.md 5 on whole daemons: real TLS, signatures, SQLite; only time is not real."""
    command = [sys.executable, "-m", "tests.schedules", "--seeds", SEEDS, "--jobs", "2"]

    run = subprocess.run(
        [*command, "--steps", str(MAX_STEPS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


def test_a_seed_is_always_the_same_schedule() -> None:
    """A failing seed that cannot be repeated is of no use."""
    assert schedule_of(7) == schedule_of(7)
    assert str(schedule_of(7)) != str(schedule_of(8))
