"""Copies of repositories on the Hugging Face hub, or of a folder in one, by `OWNER/NAME[/FOLDER][@REVISION]`.

`huggingface_hub` does the work and reads its own environment: HF_TOKEN, HF_HOME for the cache, HF_HUB_OFFLINE,
HF_ENDPOINT. It comes with `tokenizers`; importing it takes a third of a second, so that happens here, when a name is
used.
"""

import glob
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from .errors import MRCError, reason

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)(?:@([^\s@]+))?", re.ASCII)
NEWEST = "main"
Choose = Callable[[list[str]], list[str]]  # the files of a repository → those that are needed
Kind = Literal["model", "dataset"]


def is_hub_name(text: str) -> bool:
    """Whether `text` may name a repository or a folder in one; paths that begin with . or / do not."""
    return NAME.fullmatch(text) is not None


def snapshot(text: str, choose: Choose, kind: Kind = "model") -> Path:
    """The folder, in the library's cache, of a repository's newest or named revision with the files that are needed.

    What the cache has is not fetched again, and a connection that breaks is taken up where it broke. Without network
    the newest copy in the cache serves, with a warning unless HF_HUB_OFFLINE asked for that.

    Args:
        text: the repository, as `is_hub_name` has it.
        choose: gets the paths of all files in the folder and returns those to fetch; may raise MRCError to fetch
            none.

    Raises:
        MRCError: no such repository, folder, revision or file, a private one without a token that may read it, no
            network and no whole copy in the cache, or a download that broke.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    match = NAME.fullmatch(text)
    assert match is not None
    name, inside, revision = match[1], match[2][1:], match[3] or NEWEST
    chosen = partial(choose_inside, name, inside, choose)
    with explained(text, name, kind):
        try:
            api = huggingface_hub.HfApi()
            if kind == "model":
                siblings = api.model_info(name, revision=revision).siblings
            else:
                siblings = api.dataset_info(name, revision=revision).siblings
        except Exception as error:  # of the network: types of whichever library makes the requests
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            try:
                folder = cached(name, revision, chosen, kind) / inside
            except (CachedRepoTreeNotFoundError, IncompleteSnapshotError, LocalEntryNotFoundError):
                raise MRCError(
                    f"{text} is nothing here, the hub cannot be reached ({reason(error)}), and the cache has no whole "
                    "copy; check the path, or go online (HF_HUB_OFFLINE=0) and run it again"
                ) from None
            if not isinstance(error, OfflineModeIsEnabled):
                why = f"the hub cannot be reached ({reason(error)})"
                warnings.warn(f"{why}; {text} is the copy in {folder}", stacklevel=2)
            return folder
        files = chosen([file.rfilename for file in siblings or ()])
        return fetched(name, revision, files, kind) / inside


def choose_inside(name: str, inside: str, choose: Choose, files: list[str]) -> list[str]:
    """What `choose` takes of the files in the folder `inside`, which is empty for the whole repository."""
    start = f"{inside}/" if inside else ""
    there = [file.removeprefix(start) for file in files if file.startswith(start)]
    if inside and not there:
        folders = sorted({file.partition("/")[0] for file in files if "/" in file})
        raise MRCError(f"{name} on the hub has no folder {inside}; it has {', '.join(folders) or 'none'}")
    return [start + file for file in choose(there)]


def fetched(name: str, revision: str, files: list[str], kind: Kind, offline: bool = False) -> Path:
    import huggingface_hub

    patterns = [glob.escape(file) for file in files]
    folder = huggingface_hub.snapshot_download(
        name, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=offline
    )
    return Path(folder)


def cached(name: str, revision: str, choose: Choose, kind: Kind) -> Path:
    """The copy that the cache has, whole; found without network."""
    import huggingface_hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = huggingface_hub.get_cached_repo_tree(name, repo_type=kind, revision=revision)
        files = [file.path for file in tree]
    except CachedRepoTreeNotFoundError:  # an older library fetched it
        folder = fetched(name, revision, [], kind, offline=True)
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return fetched(name, revision, choose(files), kind, offline=True)


@contextmanager
def explained(text: str, name: str, kind: Kind) -> Iterator[None]:
    """Make one MRCError of what the library raises."""
    from huggingface_hub import errors, get_token

    here = f"{text} is nothing here"
    rights = "the token in HF_TOKEN may not read it" if get_token() else "it is private and HF_TOKEN is not set"
    try:
        yield
    except MRCError:
        raise
    except errors.GatedRepoError:
        raise MRCError(
            f"{here}, and on the hub its owner asks for consent; accept the terms on its page and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise MRCError(f"{here}, and the hub has no {kind} {name}, or {rights}; check path, name and token") from None
    except errors.RevisionNotFoundError:
        raise MRCError(f"the hub has {name}, but no revision {text.partition('@')[2]}; name another") from None
    except errors.RemoteEntryNotFoundError as error:
        missing = str(error.response.url).partition("/resolve/")[2].partition("/")[2]
        raise MRCError(f"{text} on the hub lists {missing} and does not have it; name another revision") from None
    except Exception as error:  # of the network and the disk, of many types
        why = reason(error.__cause__ or error)
        raise MRCError(
            f"{text} could not be fetched from the hub ({why}); run it again, it keeps whole files"
        ) from None
