"""A cache that forgets."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values by key, of which those asked for last are kept.

    Args:
        limit: how many. One that is full drops the oldest before it makes a new value.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.values: dict[Hashable, Value] = {}  # the oldest first
        self.lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not there."""
        with self.lock:
            if key in self.values:
                value = self.values.pop(key)
            else:
                while len(self.values) >= self.limit:
                    del self.values[next(iter(self.values))]
                value = make()
            self.values[key] = value
            return value
