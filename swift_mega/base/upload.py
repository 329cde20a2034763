"""A model's folder to a repository on Hugging Face or ModelScope (`ms::`), through the hub's own client.

Who may write is known to the client, as for downloads (`swift_mega.base.hub`): from its login, or from `HF_TOKEN` or
`MODELSCOPE_API_TOKEN`. What a repository has already is found by its hash: an upload that is repeated sends the rest.
"""

import contextlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from swift_mega.base import hub
from swift_mega.base.errors import UserError

WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
"""Those in a repository that the folder has not are of an earlier model: transformers might load them instead."""

FORBIDDEN = (401, 403, 404)
"""A hub answers 404 about what exists but not for the asker."""


class Repository(Protocol):
    """A repository of a model, which need not exist yet, and the client of its hub."""

    def check(self) -> None:
        """Find out whether the hub can be reached and knows who asks, before anything long is done for an upload.

        Raises:
            UserError: no network, no token, or one that is not valid or may only read.
        """

    def send(self, folder: Path) -> str:
        """Make the repository if there is none, replace its weights and add the other files of `folder`.

        Returns:
            The address of its page.

        Raises:
            UserError: no permission, no network, or a public repository where a private one was asked for.
        """


def repository(name: str, private: bool) -> Repository:
    """The repository that `name` means.

    Args:
        name: `owner/name` on Hugging Face, or `ms::owner/name` on ModelScope.
        private: make it private, and do not write to one that everybody can read.

    Raises:
        UserError: `name` cannot be a repository, or the client of its hub is not installed.
    """
    owner_and_name = name.removeprefix(hub.MODELSCOPE)
    if not hub.is_id(owner_and_name):
        raise UserError(
            f"`{name}` is not the id of a repository.",
            "Give `owner/name` on Hugging Face or `ms::owner/name` on ModelScope.",
        )
    return (ModelScope if name.startswith(hub.MODELSCOPE) else HuggingFace)(owner_and_name, private)


class HuggingFace:
    """On huggingface.co, or what `HF_ENDPOINT` names."""

    title = "Hugging Face"
    login = "`hf auth login` with a token that may write there, or HF_TOKEN."

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private

    def check(self) -> None:
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{self.name} cannot be uploaded to: HF_HUB_OFFLINE is set.", "Unset it, or upload later.")
        with self._explained():
            access = HfApi().whoami().get("auth", {}).get("accessToken", {})
        if access.get("role") == "read":
            raise _refused(self, "the token may only read")

    def send(self, folder: Path) -> str:
        from huggingface_hub import HfApi

        api = HfApi()
        with self._explained():
            page = api.create_repo(self.name, private=self.private or None, exist_ok=True)
            if self.private and not api.model_info(self.name).private:
                raise _is_public(self)
            message = f"Upload {folder.resolve().name}"
            # Of the files to delete the client leaves out those that it uploads.
            api.upload_folder(
                repo_id=self.name, folder_path=folder, commit_message=message, delete_patterns=list(WEIGHTS)
            )
        return str(page)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Exceptions of the client as what they mean to a user."""
        import httpx
        from huggingface_hub import constants, errors

        try:
            yield
        except errors.LocalTokenNotFoundError:
            raise _refused(self, "nobody is logged in") from None
        except errors.HfHubHTTPError as error:
            response = error.response
            if response.status_code in FORBIDDEN:
                raise _refused(self, f"{response.status_code} {response.reason_phrase}") from None
            raise _failed(self, error) from None
        except httpx.TransportError as error:
            raise _unreachable(self, constants.ENDPOINT, error) from None
        except (OSError, RuntimeError, ValueError) as error:  # whatever ends a transfer; what storage says; a bad id
            raise _failed(self, error.__cause__ or error) from None


class ModelScope:
    """On modelscope.cn, or what `MODELSCOPE_ENDPOINT` names. Needs the extra `modelscope`."""

    title = "ModelScope"
    login = "`ms-hub login` with a token that may write there, or MODELSCOPE_API_TOKEN."

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        client = hub.ModelScope()
        self.api, self.endpoint = client.api, client.endpoint

    def check(self) -> None:
        with self._explained():
            self.api.whoami()

    def send(self, folder: Path) -> str:
        from modelscope_hub import Visibility

        with self._explained():
            if not self.api.repo_exists(self.name, "model"):
                self.api.create_repo(self.name, "model", visibility="private" if self.private else None)
            elif self.private and self.api.get_repo(self.name, "model").visibility == Visibility.PUBLIC:
                raise _is_public(self)
            # Its notes for a repetition would be left in the folder.
            self.api.upload_folder(self.name, "model", folder, use_cache=False)
            there = {file.path for file in self.api.list_repo_files(self.name, "model")}
            stale = [name for name in there if _is_weights(name) and not (folder / name).exists()]
            if stale:
                self.api.delete_files(self.name, "model", stale)
        return f"{self.endpoint}/models/{self.name}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from modelscope_hub import errors

        try:
            yield
        except (errors.AuthenticationError, errors.PermissionDeniedError, errors.NotExistError) as error:
            raise _refused(self, error.message.rstrip(".")) from None
        except errors.NetworkError as error:
            raise _unreachable(self, self.endpoint, error) from None
        except (errors.HubError, OSError, RuntimeError) as error:  # RuntimeError: the client gave up
            raise _failed(self, error) from None


def _is_weights(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in WEIGHTS)


def _refused(to: HuggingFace | ModelScope, why: str) -> UserError:
    return UserError(f"{to.title} does not let you write to {to.name}: {why}.", to.login)


def _unreachable(to: HuggingFace | ModelScope, endpoint: str, error: Exception) -> UserError:
    return UserError(f"{to.title} cannot be reached at {endpoint}: {error}.", "Go where there is a network.")


def _failed(to: HuggingFace | ModelScope, error: BaseException) -> UserError:
    return UserError(f"{to.title} did not take {to.name}: {error}.", "Mend that or wait a little.")


def _is_public(to: HuggingFace | ModelScope) -> UserError:
    what = f"{to.name} on {to.title} is public, and `--private` was asked for."
    return UserError(what, "Make it private on its page, or choose another repository.")
