"""Models and data sets by name: a local folder, then the local cache, then Hugging Face or ModelScope (`ms::`).

Offline first: what is complete in the cache is used without asking the network, so a run starts the
same on a cluster node without one. A hub is asked only for what is missing, through its own client
(`huggingface_hub`; for `ms::`, `modelscope-hub`), which also knows mirrors and tokens: `HF_ENDPOINT`,
`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`; `MODELSCOPE_ENDPOINT`, `MODELSCOPE_API_TOKEN`, `MODELSCOPE_CACHE`.

Code that comes with a repository is not downloaded unless it is asked for, and not run here.
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

from swift_mega.base.errors import UserError

MODELSCOPE = "ms::"
HUGGING_FACE = "hf::"
"""Says what is meant without a prefix, too."""
PREFIXES = (MODELSCOPE, HUGGING_FACE)
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
WEIGHTS = ["*.safetensors"]
CODE = ["*.py"]
ID_PART = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]*(?<![.-])", re.ASCII)
"""Of an id: what Hugging Face's client accepts; a path with a blank in it, mistyped, is none."""
NOT_OURS = ["*/*"]
"""Weights in another format (`original/`, `onnx/` …) lie in folders of a repository, ours at its top."""


class Hub(Protocol):
    """One model hub and its client."""

    title: str

    def cached(self, name: str, revision: str | None, patterns: list[str]) -> Path | None:
        """The folder of `name` in the local cache; it may lack files. Never asks the network."""

    def download(self, name: str, revision: str | None, patterns: list[str]) -> Path:
        """Fetch the files that match; those already in the cache are not fetched again.

        Raises:
            UserError: no such repository or revision, no permission, no network.
        """


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True, code: bool = False) -> Path:
    """The folder of a model in Hugging Face format, fetched into the local cache if it is not there yet.

    Args:
        name: a folder, `org/name` on Hugging Face, or `ms::org/name` on ModelScope.
        revision: branch, tag or commit. A branch that is in the cache is used as it is, not updated.
        weights: False fetches configuration and tokenizer only.
        code: fetch the repository's Python files, too.

    Raises:
        UserError: neither a folder nor a repository, no permission, no network, a full disk.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    hub, repository = _hub_of(name)
    patterns = SMALL_FILES + (WEIGHTS if weights else []) + (CODE if code else [])
    cached = hub.cached(repository, revision, patterns)
    if cached is not None and is_complete(cached, weights) and (not code or any(cached.glob(CODE[0]))):
        return cached
    return hub.download(repository, revision, patterns)


def check_name(name: str) -> str:
    """The id on a hub that `name` means, where it is no folder here. Asks nobody whether there is such a thing.

    Raises:
        UserError: it cannot be an id.
    """
    repository = name.removeprefix(MODELSCOPE).removeprefix(HUGGING_FACE)
    if not is_id(repository):
        raise UserError(
            f"`{name}` is neither a folder here nor an id.",
            "Give the path of a folder, `org/name` on Hugging Face, or `ms::org/name` on ModelScope.",
        )
    return repository


def is_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` in which both hubs call their repositories."""
    parts = name.split("/")
    return len(parts) == 2 and all(map(ID_PART.fullmatch, parts))


def _hub_of(name: str) -> tuple[Hub, str]:
    """The hub that `name` means and the id there."""
    repository = check_name(name)
    return (ModelScope() if name.startswith(MODELSCOPE) else HuggingFace()), repository


def is_complete(folder: Path, weights: bool = True) -> bool:
    """Whether a folder has all that is needed of a model: an interrupted download leaves some shards out."""
    if not (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return False
    if not weights:
        return has_tokenizer(folder)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "*.model", "vocab.*", "*.tiktoken"))


class HuggingFace:
    """huggingface.co, or what `HF_ENDPOINT` names."""

    title = "Hugging Face"

    def cached(self, name: str, revision: str | None, patterns: list[str]) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        wanted: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": NOT_OURS}
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True, **wanted))
        except LocalEntryNotFoundError:
            return None

    def download(self, name: str, revision: str | None, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_OURS))
        except OSError as error:  # every error of the client is one
            known = _full_disk(error) or self._mistake(error, name, revision)
            raise known or error from None

    def _mistake(self, error: Exception, name: str, revision: str | None) -> UserError | None:
        """What an exception of the client means to a user; None: nothing a user can mend."""
        from huggingface_hub import constants, errors

        if isinstance(error, errors.GatedRepoError):
            page = f"{constants.ENDPOINT}/{name}"
            return UserError(
                f"{name} asks for consent first.", f"Accept its terms at {page}, then run `hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return _no_revision(name, revision, self.title)
        if isinstance(error, errors.RepositoryNotFoundError):
            return _no_repository(name, self.title, "`hf auth login`")
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            return _no_network(
                name, self.title, "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
            )
        if isinstance(error, errors.HfHubHTTPError):
            return UserError(f"{self.title} refused {name}: {error}.", "Try again later, or name a folder.")
        return None


class ModelScope:
    """modelscope.cn, or what `MODELSCOPE_ENDPOINT` names. Needs the extra `modelscope`."""

    title = "ModelScope"

    def __init__(self) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig
        except ImportError:
            raise UserError("`ms::` needs ModelScope's client.", "`pip install 'swift-mega[modelscope]'`") from None
        config = HubConfig()
        self.endpoint = str(config.endpoint)
        self.api = HubApi(config)

    def cached(self, name: str, revision: str | None, patterns: list[str], kind: str = "model") -> Path | None:
        from modelscope_hub import CacheNotFound

        try:
            # Without a revision the client would take whichever one is cached.
            return Path(self.api.download_repo(name, kind, revision=revision or "master", local_files_only=True))
        except CacheNotFound:
            return None

    def download(self, name: str, revision: str | None, patterns: list[str], kind: str = "model") -> Path:
        from modelscope_hub import HubError

        try:
            wanted: dict[str, Any] = {
                "allow_patterns": patterns,
                "ignore_patterns": NOT_OURS if kind == "model" else None,
            }
            return Path(self.api.download_repo(name, kind, revision=revision, **wanted))
        except (HubError, OSError) as error:
            known = _full_disk(error) or self._mistake(error, name, revision)
            raise known or error from None

    def _mistake(self, error: Exception, name: str, revision: str | None) -> UserError | None:
        from modelscope_hub import errors

        if isinstance(error, errors.FileDownloadError):
            file, cause = next(iter(error.failed_files.items()))
            return UserError(f"{file} of {name} could not be fetched from {self.title}: {cause}.", "Try again later.")
        if isinstance(error, errors.NotExistError):
            return (
                _no_revision(name, revision, self.title)
                if revision
                else _no_repository(name, self.title, "`ms-hub login`")
            )
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return _no_repository(name, self.title, "`ms-hub login`")
        if isinstance(error, errors.NetworkError | errors.RequestTimeoutError | errors.ServerError):
            return _no_network(name, self.title, self.endpoint)
        return None


def _full_disk(error: Exception) -> UserError | None:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return UserError(
            f"the disk of the cache is full: {error}.", "Free some space, or move it (`HF_HOME`, `MODELSCOPE_CACHE`)."
        )
    return None


def _no_repository(name: str, title: str, login: str) -> UserError:
    what = f"{title} has no `{name}` that you may read, and there is no such folder in {os.getcwd()}."
    return UserError(what, f"Check the spelling; for a private repository, {login} first.")


def _no_revision(name: str, revision: str | None, title: str) -> UserError:
    return UserError(f"{name} on {title} has no revision `{revision}`.", "Give a branch, a tag or a commit.")


def _no_network(name: str, title: str, why: str) -> UserError:
    return UserError(
        f"there is no folder {name} in {os.getcwd()}, it is not in the local cache, and {title} cannot be reached "
        f"({why}).",
        "Fetch it on a machine with network and name the folder, or copy its cache here.",
    )


def load_dataset(name: str, subset: str | None, split: str) -> Any:
    """A data set as a `datasets.Dataset`, from the local cache where it is there.

    Args:
        name: `org/name` on Hugging Face or `ms::org/name` on ModelScope.
        subset: its configuration; None where it has one only.
        split: as `datasets` takes it: `train`, `train[:10%]` …

    Raises:
        UserError: no such data set, subset or split, no permission, no network.
    """
    hub, repository = _hub_of(name)
    if isinstance(hub, ModelScope):
        path = hub.cached(repository, None, ["*"], "dataset") or hub.download(repository, None, ["*"], "dataset")
        repository = str(path)
    import datasets

    try:
        return datasets.load_dataset(repository, subset, split=split)
    except ValueError as error:  # an unknown subset or split; the message lists those there are
        raise UserError(
            f"{name}: {error}", "Choose with `--subset` and `--split`, or `:subset/split` behind the id."
        ) from None
    except datasets.exceptions.DatasetNotFoundError:
        raise _no_repository(name, hub.title, "`hf auth login`") from None
    except ConnectionError as error:
        raise _no_network(name, hub.title, str(error)) from None
