import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[1]", "holds a list, not an object"),
    ],
)
def test_an_error_names_the_file_and_what_to_do(content, message, tmp_path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MRCError, match=message) as error:
        read_json(path, "write it again")
    assert str(path) in str(error.value) and str(error.value).endswith("; write it again")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(MRCError, match="cannot be read"):
        read_json(tmp_path, "give a file")


def test_an_object_is_read_as_utf8(tmp_path):
    (tmp_path / "x.json").write_bytes('{"a": "é"}'.encode())
    assert read_json(tmp_path / "x.json", "") == {"a": "é"}
