import threading

import pytest

from mrc_edit.engine.backends.recent import Recent


def test_those_asked_for_last_are_kept():
    cache, made = Recent[str](2), []

    def get(key):
        return cache.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb") and list(cache.values) == ["a", "b"]


def test_the_oldest_goes_before_another_is_made():
    cache, held = Recent[int](3), []
    for key in range(10):
        cache.get(key, lambda: held.append(len(cache.values)) or 0)
    assert max(held) == 2 and len(cache.values) == 3


def test_what_cannot_be_made_is_asked_for_again():
    cache = Recent[int](1)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 5) == 5


def test_threads_make_a_value_once():
    cache, made = Recent[int](4), []
    start = threading.Barrier(8)

    def work():
        start.wait()
        for key in [0, 1, 2, 3] * 20:
            assert cache.get(key, lambda key=key: made.append(key) or key) == key

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 1, 2, 3]
