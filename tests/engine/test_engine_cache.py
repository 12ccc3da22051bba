"""Engines that TensorRT builds as it opens a graph; a stand-in writes them (conftest.py)."""

import json
from pathlib import Path

import pytest

from mrc_edit.engine import Engine
from mrc_edit.engine.backends import engine_cache, onnxruntime
from mrc_edit.engine.backends.providers import RTX, TENSORRT
from mrc_edit.engine.graphs import GRAPHS


def open_engine(provider=TENSORRT, **options):
    return Engine.from_pretrained("mini", provider=provider, **options)


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.name != "onnxruntime-timings"]


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("provider", [TENSORRT, RTX])
def test_engines_are_built_once(card, cache, request, provider):
    if provider == RTX:
        request.getfixturevalue("plugged")
    open_engine(provider)
    assert len(card.built) == len(folders(cache)) == len(GRAPHS)
    open_engine(provider)
    assert len(card.built) == len(GRAPHS)


def test_an_engine_that_is_not_the_one_that_was_written_is_never_opened(card, cache):
    open_engine()
    (unet,) = cache.glob("onnxruntime-unet-*/*.engine")
    unet.write_bytes(b"foreign code")
    card.opened.clear()
    open_engine()
    assert len(card.built) == len(GRAPHS) + 1
    assert b"foreign code" not in [content for session in card.opened for content in session.found]
    assert unet.read_bytes() == b"engine"


@pytest.mark.parametrize("change", ["batch", "options", "card", "version"])
def test_what_an_engine_depends_on_makes_another(card, cache, monkeypatch, change):
    open_engine()
    options = {}
    if change == "batch":
        options = {"max_batch": 2}
    elif change == "options":
        options = {"provider_options": {"trt_builder_optimization_level": 5}}
    elif change == "card":
        monkeypatch.setattr(engine_cache, "cards", lambda: "Model: another card")
    else:
        monkeypatch.setattr(onnxruntime.onnxruntime, "__version__", "9.9")
    open_engine(**options)
    assert len(card.built) == 2 * len(GRAPHS) == len(folders(cache))


def test_other_sizes_leave_the_graphs_without_any_alone(card, cache):
    open_engine()
    open_engine(sizes=(64, 128, 256))
    assert len(card.built) == len(folders(cache)) == 2 * len(GRAPHS) - len(["text_encoder", "conditioner"])


def test_timings_serve_later_builds_and_are_no_part_of_an_engine(card, cache):
    open_engine()
    assert [path.read_bytes() for path in cache.glob("onnxruntime-timings/*")] == [b"t" * len(GRAPHS)]
    assert not list(cache.glob("onnxruntime-*/*/*.timing")) and len(list(cache.rglob("*.timing"))) == 1
    assert all(
        json.loads((place / "digests.json").read_text()).keys() == {"graph_sm90.engine"} for place in folders(cache)
    )


def test_a_folder_with_other_things_is_left_alone(card, cache):
    open_engine()
    (unet,) = cache.glob("onnxruntime-unet-*/*.engine")
    unet.write_bytes(b"damaged")
    (unet.parent / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"notes.txt, which is of no cached graph"):
        open_engine()
    assert (unet.parent / "notes.txt").read_text() == "mine"


def test_a_cache_that_others_can_write_gives_no_engine(card, cache):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.warns(UserWarning, match="others can write there"):
        open_engine()
    assert not card.built and not list(cache.iterdir())


def test_a_build_that_fails_leaves_nothing(card, cache, monkeypatch):
    card.lost.add(TENSORRT)
    with pytest.raises(Exception, match="could not load"):
        open_engine()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_cards_are_told_by_the_driver(tmp_path, monkeypatch):
    for bus, model in (("0000:02:00.0", "B"), ("0000:01:00.0", "A")):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 7\n")
    monkeypatch.setattr(engine_cache, "CARDS", tmp_path / "gpus")
    assert engine_cache.cards() == "Model: \t\t A\nModel: \t\t B"
