"""The order of training data: megatron-core's samples, and never a function of how long the run is."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.multiprocessing.spawn import spawn

from swift_mega.base.errors import UserError
from swift_mega.data import stream as stream_module
from swift_mega.data.config import DataConfig
from swift_mega.data.loader import loader
from swift_mega.data.shares import parse_split
from swift_mega.data.stream import Stream, Streams, build_streams, epoch_seed

LENGTH = 8


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Streams]:
    """`build_streams` with this file's defaults."""

    def run(train: list[str], samples: int, evaluation: int = 0, **over: Any) -> Streams:
        settings = {"seed": 5, "vocab_size": 60000, "eod": None, "cache_dir": tmp_path / "cache"}
        calls = {name: over.pop(name) for name in list(over) if name in (*settings, "tokenizer", "consumed_samples")}
        config = DataConfig(train=train, sequence_length=LENGTH, **over)
        return build_streams(config, total_train_samples=samples, eval_samples=evaluation, **{**settings, **calls})

    return run


def first_tokens(stream: Stream, stop: int | None = None) -> list[int]:
    """The first token of every sample: with `counting` data it names the sample."""
    return [int(stream[number]["tokens"][0]) for number in range(len(stream) if stop is None else stop)]


def test_first_epoch_is_megatrons_own(build: Any, counting: Any, tmp_path: Path, one_process: None) -> None:
    prefix = counting("a", 1000)
    samples = 999 // LENGTH
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=LENGTH,
        blend=([prefix], None),
        split="90,10,0",
        path_to_cache=str(tmp_path / "theirs"),
        tokenizer=stream_module._Tokenizer(60000, None),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    theirs = BlendedMegatronDatasetBuilder(GPTDataset, [100, 5, None], lambda: True, config).build()
    ours = build([prefix], 100, 5, split="90,10,0")
    assert samples > 100
    for mine, megatrons in ((ours.train, theirs[0]), (ours.valid, theirs[1])):
        for number in range(len(mine)):
            for name, value in megatrons[number].items():
                assert torch.equal(mine[number][name], value), (number, name)
    assert ours.test is None


def test_labels_are_the_next_tokens(build: Any, counting: Any) -> None:
    train = build([counting("a", 400)], 20).train
    for number in range(20):
        sample = train[number]
        assert torch.equal(sample["labels"][:-1], sample["tokens"][1:])
        assert torch.equal(sample["position_ids"], torch.arange(LENGTH))
        assert sample["loss_mask"].tolist() == [1.0] * LENGTH


@pytest.mark.parametrize("blend", [["{a}"], ["0.7 {a}", "0.3 {b}"]])
def test_a_longer_run_starts_with_the_same_samples(build: Any, counting: Any, blend: list[str]) -> None:
    a, b = counting("a", 400), counting("b", 150, start=1000)
    entries = [entry.format(a=a, b=b) for entry in blend]
    short, long = build(entries, 10).train, build(entries, 1000).train
    assert first_tokens(short) == first_tokens(long, 10)
    assert max(long.epochs()) > 10  # far past the first epoch


def test_every_epoch_reads_every_sample_once_and_in_another_order(build: Any, counting: Any) -> None:
    train = build([counting("a", 400)], 3 * 49).train
    epochs = [first_tokens(train)[49 * epoch : 49 * (epoch + 1)] for epoch in range(3)]
    assert all(len(set(epoch)) == 49 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({epoch_seed(5, epoch) for epoch in range(100)} | {epoch_seed(6, epoch) for epoch in range(100)}) == 200


def test_blend_keeps_its_weights(build: Any, counting: Any) -> None:
    entries = [f"5 {counting('a', 400)}", f"3 {counting('b', 400, start=1000)}", f"2 {counting('c', 400, start=2000)}"]
    train = build(entries, 1000).train
    assert Counter(token // 1000 for token in first_tokens(train)) == {0: 500, 1: 300, 2: 200}
    assert train.weights == [0.5, 0.3, 0.2]


def test_without_weights_every_source_is_read_equally_often(build: Any, counting: Any) -> None:
    train = build([counting("a", 801), counting("b", 401, start=1000)], 300).train
    assert train.epochs() == [2.0, 2.0]


def test_held_out_documents_are_not_trained_on(build: Any, counting: Any) -> None:
    streams = build([counting("a", 2000)], 400, 10, split="80,10,10")
    parts = [
        {int(token) for sample in part for token in sample["tokens"]}
        for part in (
            [streams.train[number] for number in range(400)],
            [streams.valid[number] for number in range(10)],
            [streams.test[number] for number in range(10)],
        )
    ]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_separate_held_out_files(build: Any, counting: Any) -> None:
    streams = build(
        [counting("a", 400)], 10, 5, valid=[counting("v", 100, start=1000)], test=[counting("t", 100, start=2000)]
    )
    assert min(first_tokens(streams.valid)) >= 1000
    assert min(first_tokens(streams.test)) >= 2000


def test_evaluation_on_few_samples_says_that_they_repeat(build: Any, counting: Any, capsys: Any) -> None:
    streams = build([counting("a", 400)], 10, 30, valid=[counting("v", 100, start=1000)])
    assert len(first_tokens(streams.valid)) == 30 > streams.valid.sources[0].samples == 12
    assert "some of its text counts 3 times" in capsys.readouterr().out


def test_eod_mask_loss(build: Any, write_indexed: Any) -> None:
    prefix = write_indexed("a", [[1, 2, 3, 0]] * 30)
    sample = build([prefix], 1, eod=0, eod_mask_loss=True).train[0]
    assert torch.equal(sample["loss_mask"], (sample["tokens"] != 0).float())
    assert build([prefix], 1, eod=0).train[0]["loss_mask"].min() == 1.0


def test_rebuilt_files_do_not_meet_the_old_cache(build: Any, counting: Any) -> None:
    build([counting("a", 400)], 100)
    assert max(first_tokens(build([counting("a", 100)], 100).train)) < 100


def test_a_half_built_index_is_built_again(build: Any, counting: Any, tmp_path: Path, monkeypatch: Any) -> None:
    prefix = counting("a", 400)
    save = np.save

    def killed(path: str, *args: Any, **kwargs: Any) -> None:
        if "shuffle_index" in str(path):
            raise KeyboardInterrupt
        save(path, *args, **kwargs)

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        build([prefix], 10)
    monkeypatch.undo()
    assert len(set(first_tokens(build([prefix], 49).train))) == 49


def test_a_resumed_run_builds_only_the_epochs_ahead(build: Any, counting: Any, tmp_path: Path) -> None:
    entries = [f"1 {counting('a', 400)}", f"1 {counting('b', 400, start=1000)}"]
    build(entries, 1000, consumed_samples=900)
    folders = [folder.name for folder in (tmp_path / "cache").glob("*/seed-*")]
    assert sorted(folders) == sorted(f"seed-{epoch_seed(5, epoch)}" for epoch in (9, 10) for _ in range(1))


def test_full_disk(build: Any, counting: Any, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"is full.*\n.*data.cache_dir"):
        build([counting("a", 400)], 10)


@pytest.mark.parametrize(
    ("train", "over", "message"),
    [
        ([], {}, "names no data"),
        (["nowhere"], {}, r"nowhere.idx does not exist"),
        (["{a}", "0.5 {b}"], {}, "has no weight while others have one"),
        (["-1 {a}", "0.5 {b}"], {}, "must be above 0"),
        (["{a}", "{a}.bin"], {}, "is listed twice"),
        (["1 {a}", "2 {a}/../a"], {}, "is listed twice"),
        (["{a}"], {"split": "0,1,0"}, "leaves nothing to train on"),
        (["{a}"], {"split": "all"}, "is not up to three shares"),
        (["{a}"], {"split": "inf,1,0"}, "is not up to three shares"),
        (["{a}"], {"split": "1,nan,0"}, "is not up to three shares"),
        (["{short}"], {}, r"has 8 tokens in the 2 documents for train; one sample takes sequence_length \+ 1 = 9"),
        (["{a}"], {"split": "99,1,0"}, r"has 0 tokens in the 0 documents for valid"),
        (["{empty}"], {}, "is empty: 0 documents"),
        (["{a}"], {"eod_mask_loss": True}, "needs an end-of-document id"),
    ],
)
def test_errors(build: Any, counting: Any, write_indexed: Any, train: list[str], over: Any, message: str) -> None:
    names = {"a": counting("a", 100), "b": counting("b", 400), "short": counting("short", 8)}
    names["empty"] = write_indexed("empty", [])
    with pytest.raises(UserError, match=message):
        build([entry.format(**names) for entry in train], 10, 5, **over)


def test_a_token_beyond_the_vocabulary_is_named(build: Any, counting: Any) -> None:
    prefix = counting("a", 400)
    with pytest.raises(
        UserError, match=rf"{prefix} \(sample \d+ .*\) holds token 3\d\d, the model's vocabulary ends at 299"
    ):
        for _ in loader(
            build([prefix], 49, vocab_size=300).train,
            consumed_samples=0,
            micro_batch_size=2,
            dp_rank=0,
            dp_size=1,
            num_workers=1,
        ):
            pass


def _rank(rank: int, folder: str, prefix: str, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")
    config = DataConfig(train=[prefix], sequence_length=LENGTH)
    for cache in (f"{folder}/cache", f"{prefix}.bin/cache"):
        with open(f"{folder}/{rank}", "a") as said:
            try:
                streams = build_streams(
                    config, seed=5, total_train_samples=100, eval_samples=0, vocab_size=60000, eod=None, cache_dir=cache
                )
                print(first_tokens(streams.train), file=said)
            except UserError as error:
                print(error.what, file=said)
    torch.distributed.destroy_process_group()


def test_two_ranks_read_the_same_and_fail_together(
    build: Any, counting: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    prefix = counting("a", 400)
    spawn(_rank, (str(tmp_path), prefix, free_port()), nprocs=2)
    said = [(tmp_path / f"{rank}").read_text().splitlines() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0][0] == str(first_tokens(build([prefix], 100).train))
    assert "cannot be written" in said[0][1]


@pytest.mark.parametrize("split", ["969,30,1", "99", "90/10", ".8,.15,.05", "98.5, 1, .5"])
def test_shares_are_megatrons(split: str) -> None:
    assert parse_split(split) == convert_split_vector_to_split_matrix(parse_and_normalize_split(split))


def test_shares_as_powers_of_ten() -> None:
    assert parse_split("1e2,0,0") == parse_split("100,0,0")
    assert parse_split("99,1e0,0") == parse_split("99,1,0")
