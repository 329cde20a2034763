"""What a launcher says of the job is whole and makes sense, or nothing is started."""

import pytest

from swift_mega.base.errors import UserError
from swift_mega.base.world import NEEDED, launched_world_size

COMPLETE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NEEDED:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone_and_in_a_job(environment: pytest.MonkeyPatch) -> None:
    assert launched_world_size() is None
    for name, value in COMPLETE.items():
        environment.setenv(name, value)
    assert launched_world_size() == 2


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, as a launcher does it, but not RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0"}, "RANK=0 is set, as a launcher does it, but not WORLD_SIZE, MASTER"),
        (COMPLETE | {"WORLD_SIZE": "abc"}, "RANK=1 of WORLD_SIZE=abc is no process of a job"),
        (COMPLETE | {"RANK": "2"}, "RANK=2 of WORLD_SIZE=2 is no process of a job"),
    ],
)
def test_what_makes_no_sense(environment: pytest.MonkeyPatch, variables: dict[str, str], what: str) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match=what):
        launched_world_size()
