import shutil

import pytest
from huggingface_hub import constants

from mrc_edit.core.errors import MRCError
from mrc_edit.core.hub import is_hub_name, snapshot

NAME = "someone/model"


def everything(files: list[str]) -> list[str]:
    return files


@pytest.fixture
def folder(tmp_path):
    """A small file, and two that are large enough to be redirected."""
    folder = tmp_path / "pushed"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "part" / "pickle.bin").write_bytes(b"never" * 4000)
    return folder


def test_only_what_is_chosen_is_fetched_large_files_by_a_redirect(hub, folder):
    hub.push(NAME, folder)
    asked = []
    copy = snapshot(NAME, lambda files: asked.extend(files) or [file for file in files if "pickle" not in file])
    assert sorted(asked) == ["config.json", "part/pickle.bin", "part/weights.safetensors"]
    found = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.*"))
    assert found == ["config.json", "part/weights.safetensors"]
    for name in ("config.json", "part/weights.safetensors"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert [path.startswith("/blobs/") for path in sorted(hub.fetched())] == [True, False]


def test_nothing_is_fetched_twice(hub, folder):
    hub.push(NAME, folder)
    first = snapshot(NAME, everything)
    hub.log.clear()
    assert snapshot(NAME, everything) == first and hub.fetched() == []
    (folder / "config.json").write_text('{"new": 1}')  # another commit, in which two files have their old etag
    second = snapshot(NAME, everything)
    assert second != first and (second / "config.json").read_text() == '{"new": 1}'
    assert len(hub.fetched()) == 1 and hub.fetched()[0].endswith("config.json")
    assert (first / "config.json").read_text() == "{}"


def test_a_revision_is_named_after_the_at_sign(hub, folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "config.json").write_text('{"old": 1}')
    hub.push(NAME, folder, tags={"v1": old})
    newest, tagged = snapshot(NAME, everything), snapshot(f"{NAME}@v1", everything)
    assert (newest / "config.json").read_text() == "{}" and (tagged / "config.json").read_text() == '{"old": 1}'
    assert snapshot(f"{NAME}@{tagged.name}", everything) == tagged  # its commit


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)  # the library keeps whole chunks, of 10 MB by default
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    hub.push(NAME, folder, cuts={"part/weights.safetensors": 2})
    copy = snapshot(NAME, everything)
    content = (folder / "part" / "weights.safetensors").read_bytes()
    assert (copy / "part" / "weights.safetensors").read_bytes() == content
    half, rest = len(content) // 2, len(content) // 4
    assert [asked for _, _, asked, _ in hub.log if asked] == [f"bytes={half}-", f"bytes={half + rest}-"]


def test_a_download_that_breaks_for_good_is_one_error_and_goes_on_later(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    repository = hub.push(NAME, folder, cuts={"part/weights.safetensors": 100})
    with pytest.raises(MRCError, match=r"could not be fetched from the hub.*it keeps whole files"):
        snapshot(NAME, everything)
    repository.cuts.clear()
    hub.log.clear()
    copy = snapshot(NAME, everything)
    weights = "part/weights.safetensors"
    assert (copy / weights).read_bytes() == (folder / weights).read_bytes()
    assert not any(path.endswith("config.json") for path in hub.fetched())


def test_what_the_hub_does_not_have(hub, folder):
    hub.push(NAME, folder, lost=("part/lost.json",))
    with pytest.raises(
        MRCError, match="someone/modle is nothing here, and the hub has no model someone/modle, or it is"
    ):
        snapshot("someone/modle", everything)
    message = "someone/modle is nothing here, and the hub has no model someone/modle, or it is private"
    with pytest.raises(MRCError, match=message):
        snapshot("someone/modle", everything)
    with pytest.raises(MRCError, match="the hub has someone/model, but no revision v2; name another"):
        snapshot(f"{NAME}@v2", everything)
    with pytest.raises(MRCError, match=r"lists part/lost\.json and does not have it"):
        snapshot(NAME, everything)


def test_a_private_model_needs_the_token_of_the_environment(hub, folder, monkeypatch):
    hub.push(NAME, folder, token="hf_secret")
    with pytest.raises(MRCError, match="it is private and HF_TOKEN is not set"):
        snapshot(NAME, everything)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(MRCError, match="the token in HF_TOKEN may not read it") as refused:
        snapshot(NAME, everything)
    assert "hf_other" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (snapshot(NAME, everything) / "config.json").is_file()
    sent = {path.startswith("/blobs/"): token for _, path, _, token in hub.log}
    assert sent == {False: "hf_secret", True: ""}  # not to the storage, which is another host


def test_a_gated_model_asks_for_consent(hub, folder):
    hub.push(NAME, folder, gated=True)
    with pytest.raises(MRCError, match="its owner asks for consent"):
        snapshot(NAME, everything)


def test_offline_the_cache_serves(hub, folder, monkeypatch):
    hub.push(NAME, folder)
    part = snapshot(NAME, lambda files: ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert snapshot(NAME, lambda files: ["config.json"]) == part and hub.log == []
    with pytest.raises(MRCError, match="the cache has no whole copy"):
        snapshot(NAME, everything)  # a file of these was not fetched
    with pytest.raises(MRCError, match="someone/other is nothing here, the hub cannot be reached"):
        snapshot("someone/other", everything)
    shutil.rmtree(part.parents[1] / "trees")  # as older libraries leave it
    assert snapshot(NAME, lambda files: [file for file in files if file == "config.json"]) == part


@pytest.mark.parametrize("fault", ["failing", "gone"])
def test_without_a_hub_the_cache_serves_and_says_so(hub, folder, monkeypatch, fault):
    hub.push(NAME, folder)
    copy = snapshot(NAME, everything)
    if fault == "failing":
        hub.failing = True
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.warns(UserWarning, match="the hub cannot be reached"):
        assert snapshot(NAME, everything) == copy
    with pytest.raises(MRCError, match=r"the hub cannot be reached \(.*\), and the cache has no whole copy"):
        snapshot("someone/other", everything)


def test_an_error_of_the_choice_fetches_nothing(hub, folder):
    hub.push(NAME, folder)

    def refuse(files):
        raise MRCError("no use")

    with pytest.raises(MRCError, match="no use"):
        snapshot(NAME, refuse)
    assert hub.fetched() == []


def test_data_sets_are_repositories_of_their_own(hub, folder):
    hub.push(NAME, folder, kind="datasets")
    assert (snapshot(NAME, everything, "dataset") / "config.json").read_text() == "{}"
    with pytest.raises(MRCError, match="no model someone/model"):
        snapshot(NAME, everything)


def test_names():
    names = (
        "a/b",
        "a/b/c",
        "a/b/c/d.e@v1",
        "timbrooks/instruct-pix2pix",
        "a.b/c_d@v1.0",
        f"a/b@{'0' * 40}",
        "a/b@refs/pr/1",
    )
    assert [name for name in names if not is_hub_name(name)] == []
    paths = ("a", "./a", "../a", "/a/b", "a/b/", "a/b//c", "a/b@", "a/", "a/../b", "~/b", "a/b c", "a/b\n", "hf://a/b")
    assert [path for path in paths if is_hub_name(path)] == []


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", f"a/{'b' * 200}", "a/b.git"])
def test_names_that_the_library_refuses_are_one_error(hub, name):
    with pytest.raises(MRCError, match="could not be fetched from the hub"):
        snapshot(name, everything)
