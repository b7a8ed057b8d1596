"""New files that hold secrets.

Always true: such a file is mode 0600 from its first moment, whole or not there, and never written over.
"""

import contextlib
import os
from pathlib import Path

from fedpresence.errors import ConfigError


def write_secret(path: Path, text: str, *, never_over: str, instead: str) -> None:
    """`text` alone in a new file; ConfigError where it cannot be made.

    `never_over` says why a file that exists stays as it is, `instead` what to do then.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError.of(str(path), f"exists already, and {never_over}.", instead) from error
    except OSError as error:
        raise ConfigError.of(
            str(path), f"cannot be made: {error.strerror}.", "Make its folder, and let us write to it."
        ) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise ConfigError.of(str(path), f"cannot be written: {error.strerror}.", "") from error
