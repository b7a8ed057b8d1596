"""Users of several domains: made, brought together, and kept busy."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from fedpresence.testing.domains import Domain, Person

_numbers = count(1)


def people(*places: tuple[Domain, str]) -> list[Person]:
    """A new user for each, in a first sync already."""
    number = next(_numbers)
    found = [domain.user(f"{name}{number}") for domain, name in places]
    for person in found:
        person.sync()
    return found


def share_a_room(first: Person, *others: Person) -> str:
    """A public room that the first makes and the others join."""
    room_id = first.create_room()
    for other in others:
        other.join(room_id, first.domain.name)
    return room_id


@contextmanager
def presence_load(crowd: list[Person]) -> Iterator[None]:
    """Everybody in the crowd changes their status, again and again, until the end."""
    ended = threading.Event()

    def change() -> None:
        for number in count():
            if ended.is_set():
                return
            person = crowd[number % len(crowd)]
            person.put_status("online" if number % 2 else "unavailable", f"status {number}")
            time.sleep(0.02)

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
