import sys

import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.figures import new_figure, write_figure


@pytest.mark.parametrize(("name", "kind"), [("f.png", "PNG"), ("f.jpg", "JPEG"), ("f", "PNG")])
def test_a_figure_has_the_format_of_its_suffix(tmp_path, name, kind):
    figure = new_figure(3, 2)
    figure.subplots().plot([0, 1])
    write_figure(tmp_path / name, figure, dpi=50)
    picture = Image.open(tmp_path / name)
    assert (picture.format, picture.size) == (kind, (150, 100))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MRCError, match="pip install matplotlib"):
        new_figure(3, 2)
