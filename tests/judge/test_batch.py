import threading
import time

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.judge import Reward
from mrc_edit.judge.batch import judge_all
from mrc_edit.judge.spending import Spending


def reward(number):
    return Reward((number % 6, 5, 5), (True,) * 3, ("None",) * 3, tokens=10)


def test_rewards_come_in_the_order_of_items_whatever_takes_longest():
    def score(number):
        time.sleep(0.02 if number % 5 == 0 else 0)
        return f"unreadable {number}" if number == 7 else reward(number)

    found = list(judge_all(score, range(300), 4, Spending()))
    assert found == ["unreadable 7" if number == 7 else reward(number) for number in range(300)]


def test_no_more_at_a_time_than_asked_for():
    running, most, lock = 0, 0, threading.Lock()

    def score(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return reward(number)

    list(judge_all(score, range(40), 5, Spending()))
    assert most == 5


def test_an_error_stops_all_and_is_the_one_that_is_told():
    spending, begun = Spending(), []

    def score(number):
        begun.append(number)
        spending.request()
        if number == 5:
            raise MRCError("the key is refused")
        time.sleep(0.01)
        return reward(number)

    with pytest.raises(MRCError, match="the key is refused"):
        list(judge_all(score, range(1000), 4, spending))
    assert spending.stopped.is_set() and len(begun) < 100


def test_nobody_who_listens_stops_it_too():
    spending = Spending()
    for _ in judge_all(reward, range(1000), 2, spending):
        break
    # the generator was dropped
    assert spending.stopped.wait(5)
