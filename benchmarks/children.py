"""A part of a benchmark that runs in a process of its own: one line of JSON to it, one line back.

    with Child("benchmarks.destinations", specification) as child:
        child.ask("counts")

So its work is not counted as the server's, and its answers say when it is ready.
"""

import asyncio
import json
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.report import CheckFailedError

TIMEOUT_S = 120.0
MAX_LINE_BYTES = 2**28  # a specification names every user

Answer = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Child:
    """The side that asks. `specification` is the first line that the child reads."""

    def __init__(self, module: str, specification: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self._write(specification)
        self._read(TIMEOUT_S)  # it is ready

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, command: str, timeout_s: float = TIMEOUT_S, **arguments: object) -> dict[str, Any]:
        """What the child answers; CheckFailedError where it failed, TimeoutError where it is silent."""
        self._write({"command": command, **arguments})
        return self._read(timeout_s)

    def _write(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode("ascii") + b"\n")
        self._process.stdin.flush()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            raise TimeoutError(f"a child process said nothing for {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("a child process ended")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise CheckFailedError(f"in a child process: {answer['failed']}")
        return answer


async def serve_parent(make: Callable[[Any], Awaitable[Answer]]) -> None:
    """The side that answers, until its parent is gone: `make` turns the specification into an answerer."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answer = await make(json.loads(await reader.readline()))
    print("{}", flush=True)
    while line := await reader.readline():
        arguments = json.loads(line)
        try:
            answered = await answer(arguments.pop("command"), arguments)
        except Exception as error:
            answered = {"failed": repr(error)}
        print(json.dumps(answered), flush=True)
