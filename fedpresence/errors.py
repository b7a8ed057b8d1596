"""Every error that fedpresence raises.

    FedpresenceError
      ConfigError         the operator can fix it: configuration keys or files in keys/, all named at once
      BadRequest          what we were sent breaks a rule; carries errcode and HTTP status
        NotAuthentic      unknown origin, wrong signature or expired key
      DeliveryFailed      a destination did not take a transaction; may carry retry_after_ms
      HomeserverUnavailable  the homeserver beside us does not answer now; may carry retry_after_ms
      HomeserverRefused   it answered, and not what was asked for; carries errcode and HTTP status
      StoreError          the disk said no

The class says whose fault it is and who can act; shells make it a status, a retry or an exit code.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class FedpresenceError(Exception):
    """The root; never raised itself."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One mistake: the key's path (`presence.idle_timeout`), what is wrong and how to mend it."""

    key: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem} {self.fix}".rstrip()


class ConfigError(FedpresenceError):
    """The configuration, or a file it names, is wrong; `problems` has every mistake found."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, key: str, problem: str, fix: str = "") -> "ConfigError":
        """A ConfigError with one problem."""
        return cls([ConfigProblem(key, problem, fix)])


class BadRequest(FedpresenceError):
    """What we were sent breaks a rule. `errcode` is Matrix's, `status` is HTTP's.

    `soft_logout`: the client may log in again and keep what it has.
    """

    def __init__(
        self,
        errcode: str,
        message: str,
        *,
        status: int = 400,
        retry_after_ms: int | None = None,
        soft_logout: bool = False,
    ) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.message = message
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.soft_logout = soft_logout


class NotAuthentic(BadRequest):
    """We do not believe who sent this: always 401 `M_UNAUTHORIZED` (F:6.3)."""

    def __init__(self, message: str) -> None:
        super().__init__("M_UNAUTHORIZED", message, status=401)


class DeliveryFailed(FedpresenceError):
    """A destination did not take a request.

    `status` is its HTTP status, None where no answer came. `heard` says whether the bytes may have
    reached it all the same (a timeout, a connection lost after sending). `reason` is fit for a log.
    """

    def __init__(
        self,
        destination: str,
        reason: str,
        *,
        status: int | None = None,
        errcode: str | None = None,
        retry_after_ms: int | None = None,
        heard: bool = False,
    ) -> None:
        super().__init__(f"{destination}: {reason}")
        self.destination = destination
        self.reason = reason
        self.status = status
        self.errcode = errcode
        self.retry_after_ms = retry_after_ms
        self.heard = heard


class HomeserverUnavailable(FedpresenceError):
    """The homeserver beside us cannot be asked now; later it may be. `reason` is fit for a log.

    `errcode` is what it answered, None where it did not.
    """

    def __init__(self, reason: str, *, errcode: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(f"the homeserver cannot be asked: {reason}")
        self.reason = reason
        self.errcode = errcode
        self.retry_after_ms = retry_after_ms


class HomeserverRefused(FedpresenceError):
    """The homeserver beside us answered, and not what was asked for: `errcode` None where it gave none."""

    def __init__(self, status: int, errcode: str | None = None) -> None:
        super().__init__(f"the homeserver answered {status} {errcode or ''}".rstrip())
        self.status = status
        self.errcode = errcode


class StoreError(FedpresenceError):
    """The disk said no. The daemon stops: memory is ahead of what was stored."""


def reason_of(error: BaseException) -> str:
    """A failure in a few words, fit for a log."""
    reasons = getattr(error, "reasons", None)  # Twisted's ResponseFailed and its kin
    if reasons:
        error = reasons[0].value
        if type(error).__name__ == "CancelledError":  # by the timeout of whoever asked
            return "no answer in time"
    text = str(error).strip()
    name = type(error).__name__
    return f"{name}: {text}"[:200] if text else name
