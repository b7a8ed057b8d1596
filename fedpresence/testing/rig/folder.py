"""Where a rig keeps what it has on disk: a folder of its own, or one that was named.

Always true:
- one rig at a time has a folder: a second one is refused before it changed anything there;
- a folder that was named stays, with the time that its rig had come to: the next one goes on from there,
  for data from the future is no data that a server ever has;
- a folder that nobody named goes with the rig.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from fedpresence.errors import ConfigError


class Folder:
    """The folder `named`, or a new one; ConfigError where another rig has it, OSError where it cannot be."""

    def __init__(self, named: Path | None) -> None:
        self._is_ours = named is None
        self.path = named or Path(tempfile.mkdtemp(prefix="fedpresence-rig-"))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = self._locked()

    def last_ms(self) -> int:
        """The virtual time that the last rig in it came to; 0 where there was none. ConfigError."""
        try:
            return int(self._time_file.read_text("ascii")) if self._time_file.exists() else 0
        except ValueError as error:
            raise ConfigError.of(
                "--dir", f"{self._time_file} holds no time.", "Remove the folder, or that file."
            ) from error

    def keep_time(self, now_ms: int) -> None:
        """The virtual time is `now_ms`, for the next rig; a crash leaves what was kept before.

        Nothing once it is closed, for the next rig may have it; nor where somebody has removed it.
        """
        if not self._is_ours and self._lock is not None:
            partial = self._time_file.with_suffix(".partial")
            with suppress(FileNotFoundError):
                partial.write_text(f"{now_ms}\n", "ascii")
                partial.replace(self._time_file)

    def close(self) -> None:
        """Let the next rig have it, or remove what nobody asked for; again: nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._is_ours:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _time_file(self) -> Path:
        return self.path / "now_ms"

    def _locked(self) -> int:
        """The lock's descriptor: it goes with the process, however that ends."""
        descriptor = os.open(self.path / "rig.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError.of(
                "--dir",
                f"{self.path} is in use by another rig.",
                "Stop that one first, or name another folder.",
            ) from error
        return descriptor
