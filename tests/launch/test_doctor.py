"""What `swift-mega doctor` says, and that it recognises the packages that are not what their name says."""

from importlib import metadata
from pathlib import Path

import pytest

from swift_mega.cli.main import main
from swift_mega.compat import versions


class Installed:
    """A set of installed packages in place of the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
        self.packages = packages
        monkeypatch.setattr(metadata, "version", self.version)
        monkeypatch.setattr(metadata, "files", lambda name: [Path(f"{name}/__init__.py")])

    def version(self, name: str) -> str:
        """As importlib.metadata's."""
        if name not in self.packages:
            raise metadata.PackageNotFoundError(name)
        return self.packages[name]


def problem(name: str) -> str:
    return next(p.problem for p in (*versions.required(), *versions.optional()) if p.name == name)


def test_this_installation_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("Ready.")
    assert "✓ megatron-core " in out and "cores" in out and "gloo" in out


def test_what_stops_us_is_said_and_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(versions, "required", lambda: [versions.Package("torch", None, ">=2.11", "is missing: …")])
    assert main(["doctor"]) == 1
    assert "To mend: torch is missing: …" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "said"),
    [("0.16.1", ""), ("0.19.2", ""), ("0.16.0", "0.16.0 is outside <0.20,>=0.16.1"), ("0.20.0", "0.20.0 is outside")],
)
def test_a_version_outside_the_range_is_a_problem(version: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_requirements", _only("megatron-core>=0.16.1,<0.20"))
    Installed(monkeypatch, **{"megatron-core": version})
    assert problem("megatron-core").startswith(said) and bool(problem("megatron-core")) == bool(said)


def test_a_local_build_counts_as_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_requirements", _only("torch>=2.11"))
    Installed(monkeypatch, torch="2.13.0+cpu")
    assert problem("torch") == ""


def test_the_other_apex_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    Installed(monkeypatch, apex="0.9.10.dev0")
    assert "pip uninstall apex" in problem("apex")


def test_the_empty_transformer_engine_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    Installed(monkeypatch, **{"transformer-engine": "2.20.2"})
    assert "empty package" in problem("transformer-engine")
    Installed(monkeypatch, **{"transformer-engine": "2.20.2", "transformer-engine-torch": "2.20.2"})
    assert problem("transformer-engine") == ""


def test_an_optional_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    Installed(monkeypatch)
    assert not any(package.problem for package in versions.optional())
    assert all(package.problem for package in versions.required())


def test_every_extra_that_users_install_is_described() -> None:
    described = set(versions.OPTIONAL) | {"sentencepiece"}
    for extra in set(versions._extras()) - {"test", "dev"}:
        assert {need.name for need in versions._requirements(extra)} <= described


def _only(line: str) -> object:
    from packaging.requirements import Requirement

    return lambda extra: [] if extra else [Requirement(line)]
