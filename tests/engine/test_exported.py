import json
import pwd
import shutil
import warnings
from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends.exported import ExportBackend, cache_folder, warned

MINI = Path(__file__).parents[2] / "mini" / "onnx"


class Opened(ExportBackend):
    """An export that is read and checked, and not run."""

    def runner(self, graph): ...
    def to_device(self, array): ...
    def to_numpy(self, value): ...


def test_what_int8_costs_is_said_to_who_edits_with_it(tmp_path):
    export = Path(shutil.copytree(MINI, tmp_path / "export"))
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["warnings"] = ["unet in int8 moves the noise by 11.4%"]
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match=r"export: unet in int8 moves the noise by 11\.4%"):
        backend = Opened(export, "int8")
    with pytest.raises(MRCError, match="no int8 graph 'unet'"):
        backend.artifact("unet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Opened(export)


def test_the_cache_without_a_home_folder(tmp_path, monkeypatch):
    """As in a container that runs as a number."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "MRC_CACHE"):
        monkeypatch.delenv(name, raising=False)
    warned.clear()
    with pytest.warns(UserWarning, match=r"\.cache.mrc cannot be .*no home folder.*set MRC_CACHE"):
        assert cache_folder() is None
    monkeypatch.setenv("MRC_CACHE", str(tmp_path / "given"))
    assert cache_folder() == tmp_path / "given"
    monkeypatch.delenv("MRC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "mrc"
