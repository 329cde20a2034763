"""`data build`: texts → Megatron `.bin/.idx` and a manifest, in parallel, with bytes that never depend on how.

One process reads and writes, a pool tokenizes chunks of about half a megabyte; results are written in the
order of the chunks, so the files are the same for any number of workers and any engine. Everything is
written under temporary names and renamed at the end, the manifest last: a prefix with a manifest is complete.
"""

import concurrent.futures
import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from swift_mega.base import pool
from swift_mega.base.console import counted, progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.readers import (
    CHUNK_BYTES,
    BadRow,
    BadRows,
    Chunk,
    Corpus,
    OnBadRow,
    TxtDocuments,
    first_keys,
    no_key,
    texts,
)
from swift_mega.base.writing import unfinished_folder, write_errors_are_the_users
from swift_mega.data.encode import Encoded, Encoder, Encoding, encode_chunk, engines, start_worker
from swift_mega.data.indexed import IndexedWriter, bin_path, idx_path, read_index, token_dtype
from swift_mega.data.manifest import Manifest, Source, manifest_path, read_manifest, write_manifest
from swift_mega.data.tokenizer import TokenizerInfo, describe, load_tokenizer, token_id, wrapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EngineChoice = Literal["auto", "tokenizers", "gigatoken"]
Encode = Callable[[Iterable[Chunk]], Iterator[Encoded]]

SHOWN_SOURCES = 3
SAMPLED_DOCUMENTS, SAMPLED_CHARACTERS = 32, 2000
PROBES = [
    "  two spaces,\n\n\nthree newlines,\ttabs\t\tand a trailing blank ",
    "don't I'LL 1234567890 3.14 x=f(y)->z; http://example.org/?q=1#a_b",
    "Ünïcödé ﬁ e\u0301 \u00a0 中文字 かな \u200d \U0001f469\u200d\U0001f467 \u0000\u0001",
]
"""Texts that tokenizers split differently when they differ at all."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What decides the bytes besides inputs and tokenizer; goes into the manifest."""

    text_key: str = "text"
    append_eod: bool = True
    eod_token: str | None = None
    """None: the tokenizer's end of sequence."""
    special_tokens: bool = True
    """Put around a text what the tokenizer itself puts around it (BOS …), as Megatron's preprocessing does."""
    txt_documents: TxtDocuments = "file"
    on_bad_row: OnBadRow = "raise"
    subset: str | None = None
    split: str = "train"


def build(
    inputs: list[str],
    tokenizer: str,
    output: str | Path,
    options: BuildOptions | None = None,
    *,
    workers: int | None = None,
    engine: EngineChoice = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Manifest:
    """Write `OUTPUT.bin`, `OUTPUT.idx` and `OUTPUT.json`; files of the same build are left as they are.

    Args:
        inputs: files, folders, globs or data set ids, see `readers`.
        tokenizer: folder or id.
        output: prefix of the three files.
        workers: processes that tokenize; None: one per core. 1 works without a pool.
        overwrite: replace what another build wrote.

    Raises:
        UserError: inputs, tokenizer, bad rows, an output of another build, nothing to write, a full disk.
    """
    options = options or BuildOptions()
    output = _prefix(output)
    if workers is not None and workers < 1:
        raise UserError(
            f"{workers} processes cannot tokenize anything.", "Give `--workers` at least 1, or leave it out."
        )
    corpus = Corpus(
        inputs,
        text_key=options.text_key,
        txt_documents=options.txt_documents,
        subset=options.subset,
        split=options.split,
    )
    loaded = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    info = _with_eod(describe(loaded, tokenizer), loaded, options)
    done = _find_existing(output, corpus, info, options, overwrite)
    if done is not None:
        say(f"{output}: already built ({done.documents:,} documents, {done.tokens:,} tokens)")
        return done
    encoding = _choose_engine(_encoding(loaded, info, options), engine, corpus, loaded)
    with (
        write_errors_are_the_users(output, option="`--output`"),
        unfinished_folder(output.parent, output.name) as folder,
        _encoders(encoding, _worker_count(workers, corpus)) as encode,
        concurrent.futures.ThreadPoolExecutor(1) as hashing,
    ):
        # Checksums read what the tokenizing reads anyway, so they come from the page cache, beside it.
        checksums = hashing.submit(_describe_sources, corpus)
        tally = _write(corpus, encode, np.dtype(encoding.dtype), folder, options.on_bad_row)
        manifest = tally.manifest(info, options, checksums.result(), encoding.dtype)
        write_manifest(folder / "built", manifest)
        _publish(folder, output)
    _report(output, tally, manifest)
    return manifest


def _prefix(output: str | Path) -> Path:
    """The path of the three files without their endings; `books.bin` means `books`, as it does to `pretrain`."""
    text = str(output).removesuffix(".bin").removesuffix(".idx")
    if os.path.basename(text) in ("", ".", ".."):
        raise UserError(
            f"{output} is a folder.", f"`--output` takes the beginning of file names: {Path(text) / 'data'}"
        )
    return Path(text)


def _with_eod(info: TokenizerInfo, tokenizer: "PreTrainedTokenizerBase", options: BuildOptions) -> TokenizerInfo:
    """`info` with the end-of-document id that the options choose."""
    if options.eod_token is not None:
        return replace(info, eod=token_id(tokenizer, options.eod_token))
    if info.eod is None and options.append_eod:
        raise UserError(
            f"the tokenizer {info.name} names no end of sequence.", "Name one with `--eod-token`, or `--no-eod`."
        )
    return info


def _find_existing(
    output: Path, corpus: Corpus, info: TokenizerInfo, options: BuildOptions, overwrite: bool
) -> Manifest | None:
    """The manifest of files that this build would write again; None if there is nothing in the way."""
    files = [path for path in (bin_path(output), idx_path(output), manifest_path(output)) if path.exists()]
    inputs = {Path(source.name).resolve() for source in corpus.sources}
    eaten = [path for path in files if path.resolve() in inputs]
    if eaten:
        raise UserError(f"{eaten[0]} is an input and would be written over.", "Choose another `--output`.")
    if overwrite or not files:
        return None
    reason = _difference(output, corpus, info, options)
    if reason:
        raise UserError(
            f"{files[0]} is already there, and {reason}.",
            "Replace it with `--overwrite`, or choose another `--output`.",
        )
    return read_manifest(output)


def _difference(output: Path, corpus: Corpus, info: TokenizerInfo, options: BuildOptions) -> str | None:
    """Why the files at `output` are not what this build would write; None if they are."""
    manifest = read_manifest(output)
    if manifest is None:
        return "has no manifest that says what it was built from"
    if manifest.tokenizer.definition != info.definition:
        return f"was built with another tokenizer ({manifest.tokenizer.name})"
    if manifest.tokenizer.eod != info.eod or manifest.options != asdict(options):
        mine = asdict(options) | {"eod": info.eod}
        theirs = manifest.options | {"eod": manifest.tokenizer.eod}
        other = ", ".join(name for name in mine if mine[name] != theirs.get(name))
        return f"was built with other options ({other})"
    # Sizes first: checksums take a reading of everything.
    if [source.bytes for source in manifest.sources] != [source.bytes for source in corpus.sources] or [
        source.sha256 for source in manifest.sources
    ] != [source.sha256() for source in corpus.sources]:
        return "its inputs have changed"
    index = read_index(output)
    return (
        None
        if (index.documents, index.tokens) == (manifest.documents, manifest.tokens)
        else "does not match its manifest"
    )


def _encoding(tokenizer: "PreTrainedTokenizerBase", info: TokenizerInfo, options: BuildOptions) -> Encoding:
    prefix, suffix = wrapping(tokenizer) if options.special_tokens else ([], [])
    if options.append_eod and suffix[-1:] != [info.eod]:
        assert info.eod is not None
        suffix = [*suffix, info.eod]
    fast = tokenizer.is_fast
    return Encoding(
        engine="tokenizers" if fast else "python",
        tokenizer=tokenizer.backend_tokenizer.to_str() if fast else tokenizer,
        text_key=options.text_key,
        prefix=prefix,
        suffix=suffix,
        vocab_size=info.vocab_size,
        dtype=token_dtype(info.vocab_size).name,
    )


def _choose_engine(
    encoding: Encoding, choice: EngineChoice, corpus: Corpus, tokenizer: "PreTrainedTokenizerBase"
) -> Encoding:
    """The fastest engine whose ids are those of `transformers` on a sample of the corpus."""
    sample = [*_sample(corpus), *PROBES, *(f"a{token}b" for token in tokenizer.all_special_tokens)]
    expected = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in sample]
    if choice == "gigatoken" or (choice == "auto" and importlib.util.find_spec("gigatoken")):
        refused = _refusal(replace(encoding, engine="gigatoken"), sample, expected)
        if refused is None:
            return replace(encoding, engine="gigatoken")
        if choice == "gigatoken":
            raise UserError(f"gigatoken cannot do this tokenizer: {refused}.", "`--tokenizer-engine tokenizers`")
        say(f"tokenizing with `tokenizers`: gigatoken cannot do this tokenizer ({refused})")
    refused = _refusal(encoding, sample, expected)
    if refused is not None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} does not do the same twice: {refused}.")
    return encoding


def _sample(corpus: Corpus) -> list[str]:
    """The first texts.

    Raises:
        UserError: none of the first rows has the key that the text should be under.
    """
    key = corpus.text_key
    assert key is not None
    chunk = next(corpus.chunks(), None)
    rows = list(islice(texts(chunk, key), SAMPLED_DOCUMENTS)) if chunk else []
    if chunk and rows and all(isinstance(row, BadRow) and row.reason == no_key(key) for row in rows):
        raise UserError(
            f"{chunk.source} has no key `{key}`.",
            f"Keys of its first row: {', '.join(first_keys(chunk))} (`--text-key`).",
        )
    return [row.text[:SAMPLED_CHARACTERS] for row in rows if not isinstance(row, BadRow)]


def _refusal(encoding: Encoding, sample: list[str], expected: list[list[int]]) -> str | None:
    """Why an engine is not to be used; None: its ids are the expected ones."""
    if encoding.engine == "gigatoken" and not isinstance(encoding.tokenizer, str):
        return "it has no Rust form"
    try:
        engine, _ = engines(encoding)
    except ImportError:
        return "the package `gigatoken` is not installed"
    except (RuntimeError, ValueError, TypeError) as error:  # what gigatoken raises for a definition it does not know
        return str(error).splitlines()[0]
    ids, lengths = engine.encode(sample)
    for text, theirs, mine in zip(sample, expected, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        if theirs != mine.tolist():
            return f"it gives other ids for {text[:40]!r}"
    return None


def _worker_count(workers: int | None, corpus: Corpus) -> int:
    return pool.useful_workers(workers, corpus.bytes // CHUNK_BYTES)


@dataclass
class _Tally:
    """What has been written so far."""

    bad_rows: BadRows
    documents: int = 0
    tokens: int = 0
    empty: int = 0
    largest: int = -1

    def add(self, encoded: Encoded) -> None:
        self.bad_rows.add(encoded.bad)
        self.documents += len(encoded.lengths)
        self.tokens += int(encoded.lengths.sum(dtype=np.int64))
        self.empty += encoded.empty
        self.largest = max(self.largest, encoded.largest)

    def manifest(self, info: TokenizerInfo, options: BuildOptions, sources: list[Source], dtype: str) -> Manifest:
        return Manifest(
            tokenizer=info,
            options=asdict(options),
            sources=sources,
            documents=self.documents,
            tokens=self.tokens,
            dtype=dtype,
            largest_token=self.largest,
            empty_documents=self.empty,
            bad_rows=dict(self.bad_rows.reasons),
        )


def _write(corpus: Corpus, encode: Encode, dtype: np.dtype[Any], folder: Path, on_bad_row: OnBadRow) -> _Tally:
    """Tokenize everything into `folder/built.bin` and `.idx`."""
    tally = _Tally(BadRows())
    with bin_path(folder / "built").open("wb") as binary:
        writer = IndexedWriter(binary, dtype)
        with progress(corpus.bytes, "tokenizing", "B", unit_scale=True) as bar:
            for encoded in encode(corpus.chunks()):
                tally.add(encoded)
                tally.bad_rows.judge(on_bad_row)
                writer.add(encoded.tokens, encoded.lengths)
                bar.update(encoded.size)
                bar.set_status(f"{tally.tokens:,} tokens")
    if tally.documents == 0:
        sources = ", ".join(source.name for source in corpus.sources[:SHOWN_SOURCES])
        more = " …" if len(corpus.sources) > SHOWN_SOURCES else ""
        empty, rows = counted(tally.empty, "empty document"), counted(tally.bad_rows.reasons.total(), "bad row")
        raise UserError(
            f"there is nothing to write of {sources}{more}: {empty}, {rows}, no others.",
            "Give files with texts, or another `--text-key`.",
        )
    writer.write_index(idx_path(folder / "built"))
    return tally


@contextlib.contextmanager
def _encoders(encoding: Encoding, workers: int) -> Iterator[Encode]:
    """What tokenizes chunks, in this process or in a pool of `workers`; results come in the order of the chunks."""
    if workers == 1:
        encoder = Encoder(encoding)
        yield lambda chunks: map(encoder, chunks)
        return
    with pool.in_order(encode_chunk, workers, start_worker, (encoding,)) as encode:
        yield encode


def _describe_sources(corpus: Corpus) -> list[Source]:
    return [Source(path=source.name, bytes=source.bytes, sha256=source.sha256()) for source in corpus.sources]


def _publish(folder: Path, output: Path) -> None:
    """Rename the finished files; an old manifest goes first and the new one comes last."""
    manifest_path(output).unlink(missing_ok=True)
    for path in (bin_path, idx_path, manifest_path):
        with path(folder / "built").open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path(folder / "built"), path(output))


def _report(output: str | Path, tally: _Tally, manifest: Manifest) -> None:
    if tally.bad_rows.reasons:
        say(f"left out {tally.bad_rows}")
    if tally.empty:
        say(f"left out {counted(tally.empty, 'empty document')}")
    eod = f", end of document {manifest.tokenizer.eod}" if manifest.options["append_eod"] else ""
    say(f"{output}: {counted(tally.documents, 'document')}, {tally.tokens:,} tokens ({manifest.dtype}{eod})")
