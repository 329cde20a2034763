"""install(): once, before megatron, whatever broken packages lie around."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swift_mega import compat
from swift_mega.compat import optional
from swift_mega.compat.installation import install_redirections

ROOT = Path(__file__).parents[2]


def python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, with `path` before the installed packages."""
    paths = os.pathsep.join(str(p) for p in (path, ROOT) if p is not None)
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_installing_again_changes_nothing() -> None:
    before = install_redirections()
    compat.install()
    assert install_redirections() is before


def test_it_may_be_installed_where_no_gradients_are_wanted() -> None:
    code = "import torch; from swift_mega import compat\nwith torch.no_grad(): compat.install()"
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_megatron_imported_before_is_an_error_that_says_what_to_do() -> None:
    result = python("import megatron.core\nfrom swift_mega import compat\ncompat.install()")
    assert result.returncode != 0
    assert "megatron.core was imported before" in result.stderr
    assert "Call swift_mega.compat.install() first" in result.stderr


def test_install_is_quiet_and_survives_broken_packages(tmp_path: Path) -> None:
    """The empty TransformerEngine meta package, and PyPI's `apex`, which is another project."""
    for package, content in (("transformer_engine", "raise RuntimeError('empty meta package')"), ("apex", "")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(content)
    result = python(
        "from swift_mega import compat\ncompat.install()\n"
        "import megatron.core.models.gpt.gpt_layer_specs as specs\n"
        "print(specs.HAVE_TE, specs.HAVE_APEX)\nimport apex",
        tmp_path,
    )
    assert result.stdout.strip() == "False False"
    assert "ModuleNotFoundError" in result.stderr
    assert "Warning" not in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise RuntimeError('cudnn shared object not found')", "RuntimeError: cudnn shared object not found"),
        ("raise OSError('libcuda.so.1')", "OSError: libcuda.so.1"),
        ("", "ModuleNotFoundError: No module named 'broken_engine.pytorch'"),
    ],
)
def test_why_an_accelerated_package_cannot_be_used(
    content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine").mkdir()
    (tmp_path / "broken_engine" / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert optional.why_not.__wrapped__("broken_engine", "pytorch") == reason
    optional.hide("broken_engine")
    assert optional.why_not.__wrapped__("broken_engine", "pytorch") == "not installed"
    del sys.modules["broken_engine"]


def test_a_package_without_its_device_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert optional.why_not.__wrapped__("antigravity", "pytorch") == "needs CUDA"
