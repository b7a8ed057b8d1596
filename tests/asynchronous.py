"""Deferreds and coroutines that have already fired, read without a reactor."""

from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def as_deferred(awaitable: Awaitable[T]) -> "Deferred[T]":
    """A coroutine started, or the Deferred itself."""
    if isinstance(awaitable, Deferred):
        return awaitable
    return ensureDeferred(cast("Coroutine[Deferred[Any], Any, T]", awaitable))


def result_of(awaitable: Awaitable[T]) -> T:
    """Its result; an AssertionError where it has not fired, its error where it failed."""
    results: list[T | Failure] = []
    as_deferred(awaitable).addBoth(results.append)
    assert results, "has not fired yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def failure_of(awaitable: Awaitable[object], error: type[E]) -> E:
    """The error it failed with, which must be an `error`."""
    results: list[object] = []
    as_deferred(awaitable).addBoth(results.append)
    assert results, "has not fired yet"
    failure = results[0]
    assert isinstance(failure, Failure), f"did not fail: {failure!r}"
    assert isinstance(failure.value, error), f"failed with {failure.value!r}"
    return failure.value
