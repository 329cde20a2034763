"""What a redirection is: one thing a library does, replaced on this machine, with proof that it still fits.

A library changes under us in two ways. A name moves away: then assigning to it would succeed and do
nothing, so `names` must exist before they are replaced. Or a behaviour changes: then `probe`, which
uses the redirected thing as megatron does, fails.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from swift_mega.base.errors import UserError


class CompatError(UserError):
    """A library is not as this package knows it."""


@dataclass(frozen=True)
class Redirection:
    """One replaced behaviour.

    Args:
        name: what is redirected, for messages.
        library: the distribution that it belongs to.
        why: what would happen without it.
        names: dotted names that `apply` replaces or relies on.
        apply: puts the replacement in place.
        probe: uses the replacement as megatron does; false or an exception means that it no longer fits.
    """

    name: str
    library: str
    why: str
    names: tuple[str, ...]
    apply: Callable[[], None]
    probe: Callable[[], bool]

    def install(self) -> None:
        """Check, replace, probe.

        Raises:
            CompatError: names the library, its version and this redirection.
        """
        for name in self.names:
            resolve(name, self)
        self.apply()
        self.check()

    def check(self) -> None:
        """Run the probe.

        Raises:
            CompatError: the probe fails.
        """
        try:
            fits = self.probe()
        except (AttributeError, TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
            raise self.changed(f"its probe ended in {type(error).__name__}: {error}") from error
        if not fits:
            raise self.changed("its probe found another result than expected")

    def changed(self, symptom: str) -> CompatError:
        """The error that says that the library underneath has changed."""
        return CompatError(
            f"the redirection `{self.name}` does not fit {self.library} {installed_version(self.library)}: {symptom}. "
            f"It is there because {self.why}.",
            f"Install the versions that this release was tested with (requirements/), or mend {__package__}.",
        )


def resolve(name: str, redirection: Redirection) -> Any:
    """The object behind a dotted name.

    Raises:
        CompatError: there is no such name.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        raise redirection.changed(f"`{name}` does not exist") from None


def replace(name: str, value: Any) -> None:
    """Put `value` where the dotted `name` points."""
    owner, _, attribute = name.rpartition(".")
    setattr(pkgutil.resolve_name(owner), attribute, value)


def installed_version(library: str) -> str:
    """The version of a distribution, or `(not installed)`."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "(not installed)"
