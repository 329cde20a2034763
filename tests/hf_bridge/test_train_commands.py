"""`bridge sft` and `bridge pretrain` as a person types them, and the same from Python."""

from pathlib import Path

import pytest

from hf_bridge.methods.config import TuneConfig
from swift_mega.base.config import named
from swift_mega.cli.main import main
from tests.hf_bridge.methods import runs
from tests.support import newcomer


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("commands")
    newcomer.tiny_model(folder / "model")
    runs.ground(folder)
    places = {"--model": "model", "--dataset": "chat.jsonl", "--output": "out", "--cache-dir": "cache"}
    words = [word for option, name in places.items() for word in (option, str(folder / name))]
    return ["bridge", "sft", *words, "--template", "plain"]


def test_a_dry_run_says_what_will_be_done(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tuner-options", "use_rslora=true", "--packing", "--max-length", "64", "--rank", "2"]
    assert main([*argv, *options, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "use_rslora: true" in out
    assert "tokens an epoch" in out and "of all positions hold one" in out
    assert "1 step with 16 sequences each" in out
    assert "3,712 parameters are trained" in out
    assert not Path(argv[argv.index("--output") + 1]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tuner", "lorra"], "did you mean `lora`?"),
        (["--template", "chatlm"], "did you mean `chatml`?"),
        (["--lr-scheduler-type", "cosin"], "did you mean `cosine`?"),
        (["--optim", "adamw_torh"], "did you mean `adamw_torch`?"),
        (["--lr-scheduler-kwargs", "min_lr=1"], "`cosine_with_min_lr` and `cosine_warmup_with_min_lr` have it."),
        (["--lr-scheduler-type", "warmup_stable_decay"], "num_decay_steps"),
        (["--output", "/proc/x"], "/proc/x cannot be written"),
        (["--gradient-accumulation-steps", "0"], "It must be at least 1."),
        (["--warmup-ratio", "1"], "It is a share"),
        (["--max-steps", "0"], "at least 1, or -1"),
        (["--load-best"], "`train.load_best` needs data to evaluate on"),
        (["--early-stopping", "2", "--val-share", "0.2"], "Say how often: `--eval-steps 100`"),
        (["--tuner-options", "use_rslora"], "Write `name=value`"),
        (["--learning-rat", "1"], "did you mean `--learning-rate`"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--nproc", "0"], "'0' is not a number of processes"),
    ],
)
def test_mistakes_are_one_message(
    options: list[str], message: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_five_lines_of_python(argv: list[str]) -> None:
    from hf_bridge.methods.sft import sft

    places = dict(zip(argv[2::2], argv[3::2], strict=True))
    config = named(TuneConfig, model=places["--model"], dataset=[places["--dataset"]], output=places["--output"])
    config.text.template, config.train.max_steps, config.data.cache_dir = "plain", 1, places["--cache-dir"]
    outcome = sft(config)
    assert outcome.step == 1
    assert (outcome.folder / "adapter_config.json").is_file()
