"""Random fault schedules by the thousand: `python -m tests.schedules --seeds 0-999 --jobs 2`.

Says each seed that breaks an invariant, with its steps and the end of its wire log; exit code 1 then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.logger import globalLogBeginner

from tests.schedules.performer import Report, perform
from tests.schedules.schedule import MAX_STEPS, schedule_of

PROGRESS_S = 20.0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.schedules", description=__doc__)
    parser.add_argument("--seeds", default="0-24", help="such as 7 or 0-999")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--steps", type=int, default=MAX_STEPS, help="at most so many in a schedule")
    parser.add_argument("--lines", action="store_true", help="one JSON object for each seed, no more")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = list(range(int(first), int(last or first) + 1))
    if options.lines:
        return _run_here(seeds, options.jobs, options.steps)
    return _run_in_processes(seeds, options.jobs, options.steps)


def _run_in_processes(seeds: list[int], jobs: int, steps: int) -> int:
    """Every `jobs`th seed in each process; tell as it goes."""
    began = told = time.monotonic()
    reports: list[Report] = []
    for report in _reports(seeds, jobs, steps):
        reports.append(report)
        if report.failure:
            print(f"--- seed {report.seed} ---\n{report.failure}\n", flush=True)
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"{len(reports)} of {len(seeds)}, {told - began:.0f} s", flush=True)
    failed = sorted(report.seed for report in reports if report.failure)
    missing = sorted({*seeds} - {report.seed for report in reports})
    days = sum(report.days for report in reports)
    print(f"{len(reports)} schedules in {time.monotonic() - began:.1f} s, {days:,.0f} days")
    names = ("transactions", "again", "pushes", "final_pushes", "list_edus")
    print(", ".join(f"{sum(getattr(r, name) for r in reports):,} {name}" for name in names))
    ends: Counter[str] = Counter()
    for report in reports:
        ends.update(report.ends)
    print("pairs after nine days: " + ", ".join(f"{count} {state}" for state, count in ends.most_common()))
    if failed:
        print(f"failed: {', '.join(map(str, failed))}")
    if missing:
        print(f"no report of: {', '.join(map(str, missing))}")
    return 1 if failed or missing else 0


def _reports(seeds: list[int], jobs: int, steps: int) -> Iterator[Report]:
    """Reports as they come, from processes that each have a reactor of their own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        files = [Path(folder) / str(number) for number in range(jobs)]
        running = []
        for number, path in enumerate(files):
            path.touch()
            span = f"{seeds[0] + number}-{seeds[-1]}"
            running.append(pool.submit(_child, span, jobs, steps, path))
        read = [0] * jobs
        while True:
            is_done = all(each.done() for each in running)
            for number, path in enumerate(files):
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                for line in lines[read[number] :]:
                    if line.endswith("\n"):
                        read[number] += 1
                        yield Report(**json.loads(line))
            if is_done:
                return
            time.sleep(0.2)  # files cannot be awaited


def _child(span: str, jobs: int, steps: int, path: Path) -> None:
    command = [sys.executable, "-m", "tests.schedules", "--lines", "--seeds", span]
    with path.open("w", encoding="utf-8") as output:
        subprocess.run([*command, "--jobs", str(jobs), "--steps", str(steps)], stdout=output, check=False)


def _run_here(seeds: list[int], stride: int, steps: int) -> int:
    """Every `stride`th seed, in this process."""
    from twisted.internet import reactor as this_reactor

    reactor: Any = this_reactor
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    async def run() -> None:
        for seed in seeds[::stride]:
            report = await perform(reactor, schedule_of(seed, max_steps=steps))
            print(json.dumps(asdict(report)), flush=True)

    def begin() -> None:
        running = ensureDeferred(run())
        running.addErrback(lambda failure: print(failure.getTraceback(), file=sys.stderr))
        running.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
