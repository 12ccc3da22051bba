import threading
import time

import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import devices
from mrc_edit.engine.backends.devices import PRODUCTS, float32_products, torch_device

CARD = torch.device("cuda")  # no card is needed to speak of one


def settings() -> list[str]:
    return [products.fp32_precision for products in PRODUCTS]


def test_the_device_is_the_card_where_there_is_one(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert torch_device(None).type == ("cuda" if there else "cpu")
    assert torch_device("cpu").type == "cpu"


@pytest.mark.parametrize(("name", "word"), [("gpu", "'gpu'; give"), ("meta", "give cpu"), ("cuda:7", "sees")])
def test_devices_that_are_not_there(tiny, name, word):
    for backend in ("eager", "torch"):
        with pytest.raises(MRCError, match=word):
            Engine.from_pretrained(tiny, backend, device=name)


@pytest.mark.parametrize(("tf32", "expected"), [(False, "ieee"), (True, "tf32")])
def test_float32_is_what_it_says_and_the_setting_is_put_back(tf32, expected):
    before = settings()
    with pytest.raises(ZeroDivisionError), float32_products(CARD, tf32):
        assert settings() == [expected] * 3
        raise ZeroDivisionError
    assert settings() == before


def test_a_cpu_leaves_the_setting_alone():
    before = settings()
    with float32_products(torch.device("cpu")):
        assert settings() == before


def test_threads_wait_for_each_others_precision():
    """What one thread computes in float32 is not computed in TF32 because of another."""
    wrong = []

    def run(tf32: bool) -> None:
        for _ in range(20):
            with float32_products(CARD, tf32):
                time.sleep(0.001)  # the others have their turn
                wrong.extend(set(settings()) - {"tf32" if tf32 else "ieee"})

    before = settings()
    threads = [threading.Thread(target=run, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and settings() == before


def test_auto_takes_the_fastest_backend_of_a_card(tiny, monkeypatch):
    assert type(Engine.from_pretrained(tiny, device="cpu").backend).__name__ == "EagerBackend"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "torch_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("mrc_edit.engine.backends.torch.torch_device", lambda name: torch.device("cpu"))
    assert type(Engine.from_pretrained(tiny).backend).__name__ == "TorchBackend"
    assert type(Engine.from_pretrained(tiny, device="cpu").backend).__name__ == "EagerBackend"
