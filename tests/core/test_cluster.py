import os
import signal

import pytest

from mrc_edit.core.cluster import connected, prepare_ray
from mrc_edit.core.errors import MRCError, Stopped, stopping

ray = pytest.importorskip("ray", reason="--ray is tested where ray is installed")


@pytest.fixture
def started(monkeypatch):
    """What Ray was started with, in place of which nothing is started; it takes the signals for itself, as Ray does."""
    calls = []

    def init(address, **options):
        calls.append((address, options.get("_node_ip_address"), os.environ.get("RAY_AUTH_MODE")))
        signal.signal(signal.SIGTERM, lambda *_: None)

    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls


def test_a_cluster_of_our_own_has_a_token_and_our_signals_stay(started):
    prepare_ray()
    with pytest.raises(Stopped), stopping(), connected():
        signal.raise_signal(signal.SIGTERM)
    assert started == [("local", "127.0.0.1", "token"), "shutdown"] and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_cluster_that_is_given_keeps_its_own_rules(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    prepare_ray()
    with connected():
        pass
    assert started == [("head:6379", None, None), "shutdown"] and "RAY_AUTH_TOKEN" not in os.environ


def test_a_cluster_that_does_not_start_is_one_error(started, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: {}["head"])
    with pytest.raises(MRCError, match=r"Ray does not start.*KeyError"), connected():
        pass
