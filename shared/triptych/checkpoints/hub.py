"""A model's repository on the Hugging Face hub: one commit of it, file by file into the local cache."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.errors import CheckpointError

log = logging.getLogger(__name__)

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG_SECONDS = 10.0
_LOGGED_BYTES = 1 << 20


INDEX_NAMES = ("model_index.json", "modular_model_index.json")
"""Files that name a checkpoint's components: a pipeline's, and a modular one's."""


def is_hub_name(text: str) -> bool:
    """Whether it has the form org/name."""
    return _NAME.fullmatch(text) is not None


class Repository:
    """A repository at one commit. `folder` is the commit's folder in the cache, filled by `fetch`."""

    def __init__(self, name: str, commit: str, folder: Path, files: Iterable[str], offline: bool) -> None:
        self.name = name
        self.commit = commit
        self.folder = folder
        self.offline = offline
        self._files = frozenset(files)

    def names(self, folder: str) -> list[str]:
        """The names of the files that are directly in a folder of the repository; offline, in the cache."""
        return sorted(
            file.removeprefix(f"{folder}/") for file in self._files if file.rpartition("/")[0] == folder
        )

    def fetch(self, files: Iterable[str]) -> None:
        """Downloads what of the files the repository has and the cache has not. Raises CheckpointError."""
        for file in files:
            if file in self._files and not (self.folder / file).is_file():
                _download(self.name, self.commit, file)


def open_repository(
    name: str, revision: str | None, offline: bool, marks: Sequence[str] = INDEX_NAMES
) -> Repository:
    """The repository at a branch, tag or commit ("main" if None), which becomes a commit here.

    `marks`: files of which it has one.

    Offline (or with HF_HUB_OFFLINE) nothing is asked of the hub: the cache must have it. A private or gated
    repository is read with the token in HF_TOKEN, or that of `hf auth login`.

    Raises:
        CheckpointError: there is no such repository or revision, it may not be read, the hub does not answer,
            or the cache does not have it.
    """
    import huggingface_hub

    offline = offline or huggingface_hub.is_offline_mode()
    revision = revision or "main"
    repository = (_cached if offline else _resolved)(name, revision, marks)
    log.info("%s at %s is commit %s", name, revision, repository.commit)
    return repository


def _resolved(name: str, revision: str, marks: Sequence[str]) -> Repository:
    """The repository as the hub knows it; as the cache does, if the hub is away and a commit is asked for.

    The first file is asked for at the revision, so that the cache keeps which commit that is.
    """
    import huggingface_hub

    try:
        folder = _download_first(name, revision, marks)
        with _clear_errors(name, revision):
            info = huggingface_hub.HfApi(token=_token()).model_info(name, revision=folder.name)
    except HubAwayError:
        if _COMMIT.fullmatch(revision) and _snapshot(name, revision, marks):  # a commit does not change
            return _cached(name, revision, marks)
        raise
    files = [sibling.rfilename for sibling in info.siblings or ()]
    return Repository(name, folder.name, folder, files, offline=False)


def _cached(name: str, revision: str, marks: Sequence[str]) -> Repository:
    snapshot = _snapshot(name, revision, marks)
    if snapshot is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise CheckpointError(
            f"{name} at {revision} is not in the cache, {HF_HUB_CACHE}, and offline the hub is not asked"
        )
    files = [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]
    return Repository(name, snapshot.name, snapshot, files, offline=True)


def _snapshot(name: str, revision: str, marks: Sequence[str]) -> Path | None:
    """The folder of a revision in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = ((mark, try_to_load_from_cache(name, mark, revision=revision)) for mark in marks)
    return next((_root(file, mark) for mark, file in found if isinstance(file, str)), None)


def _download_first(name: str, revision: str, marks: Sequence[str]) -> Path:
    """The folder of a revision in the cache, with the first of some files that it has."""
    missing: list[MissingFileError] = []
    for mark in marks:
        try:
            return _root(_download(name, revision, mark), mark)
        except MissingFileError as error:
            missing.append(error)
    raise missing[0] from missing[0].__cause__


def _root(file: str | Path, name: str) -> Path:
    """The folder in which a file has that name, e.g. vae/config.json."""
    return Path(file).parents[name.count("/")]


def _download(name: str, revision: str, file: str) -> Path:
    """The file in the cache. Progress is a bar on a terminal, a log line now and then elsewhere."""
    from huggingface_hub import hf_hub_download

    with _clear_errors(name, revision, file):
        bar = {} if sys.stderr.isatty() else {"tqdm_class": _logged_progress(file)}
        return Path(hf_hub_download(name, file, revision=revision, token=_token(), **bar))


def _token() -> str | bool:
    """That of HF_TOKEN or of `hf auth login`; False: none. Raises CheckpointError, without saying it."""
    import huggingface_hub

    token = huggingface_hub.get_token()
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise CheckpointError(
            "the token for the hub, in HF_TOKEN or from `hf auth login`, has characters that no token has: "
            "set it anew"
        )
    return token or False


class HubAwayError(CheckpointError):
    """The hub did not answer."""


class MissingFileError(CheckpointError):
    """A repository does not have a file."""


@contextmanager
def _clear_errors(name: str, revision: str, file: str = "model_index.json") -> Iterator[None]:
    """Turns what huggingface_hub raises into a CheckpointError of one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its terms at {_endpoint()}/{name}, "
            "and put a token of yours that may read it into HF_TOKEN, or call `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name} here, and on the hub there is none either or it is private, and "
            "neither HF_TOKEN nor `hf auth login` gave a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no branch, tag or commit '{revision}'") from error
    except errors.RemoteEntryNotFoundError as error:
        raise MissingFileError(f"{name} at {revision} is no checkpoint: it has no {file}") from error
    except Exception as error:  # also httpx's errors, under whichever name huggingface_hub has it
        raise HubAwayError(
            f"{name} cannot be had from the hub ({_said(error.__cause__ or error)}); "
            "with --offline, what the cache has of it is used"
        ) from error


def _said(error: BaseException) -> str:
    """The first line of an error, without the token, whatever a library put into it."""
    import huggingface_hub

    line = f"{type(error).__name__}: {error}".splitlines()[0]
    token = huggingface_hub.get_token()
    return line.replace(token, "...") if token else line


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _logged_progress(file: str) -> Any:
    """A class of progress bars that are log lines: one every ten seconds, and one at both ends.

    Small files are not worth a line.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class LoggedProgress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            lines = {"desc": file, "bar_format": "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}"}
            pace = {"mininterval": _LOG_SECONDS, "disable": False, "file": io.StringIO()}
            super().__init__(*arguments, **options | lines | pace)  # type: ignore[no-untyped-call]

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if (self.total or 0) >= _LOGGED_BYTES:
                log.info("%s", msg or str(self))

    return LoggedProgress
