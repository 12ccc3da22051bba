import json

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.train.run_folder import check_own, remove_run, run_folder


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def enter(out, resume=False, overwrite=False):
    with run_folder(out, resume, overwrite):
        pass


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    state = "states/00000004/state"
    make(
        tmp_path, f"{state}.json", f"{state}.safetensors", "checkpoint/model_index.json", "checkpoint/unet/config.json"
    )
    (tmp_path / "training.json").write_text(json.dumps({"config": {}}))
    return tmp_path


@pytest.mark.parametrize("name", ["checkpoint/mine.txt", "training.json", "report.html", "states/00000002/state.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_replaces_nothing(tmp_path, name, resume):
    make(tmp_path, name)
    if name.startswith("states") and resume:
        enter(tmp_path, resume)
        return
    with pytest.raises(MRCError, match=f"holds {name.split('/')[0]} .*--overwrite"):
        enter(tmp_path, resume)
    enter(tmp_path, overwrite=True)
    assert (tmp_path / name).exists()


def test_of_the_run_that_is_replaced_nothing_is_shown(finished):
    make(finished, "validation/00000004.png", "validation/mine.png", "scores.json")
    remove_run(finished)
    left = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert left == {
        "validation/mine.png",
        "checkpoint/model_index.json",
        "checkpoint/unet/config.json",
        "training.json",
    }


def test_other_files_and_what_a_kill_left_do_not_matter(tmp_path):
    make(tmp_path, "log.txt", "states/.00000002.partial-ab/state.json")
    enter(tmp_path)
    enter(tmp_path, resume=True)


def test_a_finished_run_goes_on(finished):
    enter(finished, resume=True)
    with pytest.raises(MRCError, match=r"holds checkpoint, training\.json, states of a run"):
        enter(finished)


def test_a_checkpoint_with_other_files_is_not_replaced(finished):
    make(finished, "checkpoint/unet/mine.txt")
    with pytest.raises(MRCError, match=r"unet/mine\.txt, which is not of a checkpoint"):
        enter(finished, resume=True)


@pytest.mark.parametrize("record", [None, "{}", "{"])
def test_a_checkpoint_without_its_record_is_not_replaced(finished, record):
    (finished / "training.json").unlink()
    if record is not None:
        (finished / "training.json").write_text(record)
    with pytest.raises(MRCError, match="move that folder away"):
        check_own(finished / "checkpoint")


def test_a_second_run_is_refused_and_an_idle_one_leaves_no_folder(tmp_path):
    with run_folder(tmp_path / "out", False, False):
        with pytest.raises(MRCError, match="another run is writing"):
            enter(tmp_path / "out", resume=True)
        assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").exists()
