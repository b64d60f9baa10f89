"""From a corpus to tokens on disk, once: later runs find the tokens by the stamp of the corpus and open them.

The cache holds `tokens/KEY/`, one prepared corpus each, KEY being a digest of the content and of all that shapes the
tokens; and `index/REQUEST.json`, which says what KEY a corpus in a certain state (its stamp) came to, so that an
unchanged corpus is not even read. What the stamp trusts is said at `shoestring.data.corpus.stamp_files`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shoestring import atomic
from shoestring.data.answers import prepare_answers
from shoestring.data.bpe import PATTERN, SAMPLE, byte_tokenizer, train_bpe
from shoestring.data.chats import prepare_chats
from shoestring.data.config import DataConfig, SourceConfig
from shoestring.data.corpus import Corpus, open_corpus
from shoestring.data.dataset import MANIFEST, VERSION, Dataset, Part, open_dataset, token_type, write_manifest
from shoestring.data.places import absolute_corpus
from shoestring.data.reading import READER
from shoestring.data.store import StoreWriter, TokenStore
from shoestring.data.subset import read_index, subset
from shoestring.data.survey import Content, Survey, digest, survey
from shoestring.data.text_batches import batched
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError, did_you_mean
from shoestring.json_files import NotJson, parse_json
from shoestring.locks import hold
from shoestring.log_lines import held_back

log = logging.getLogger(__name__)

KEY = re.compile(r"[0-9a-f]{32}")
"""The name of a prepared corpus in the cache."""

BATCH = 1 << 20
"""Characters of text tokenised at a time, on all cores."""

CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of shoestring: see https://bford.info/cachedir/\n"


def prepare(config: DataConfig, cache: Path) -> Dataset:
    """The tokens of a corpus, made on the first call and found in `cache` on every other; those of `config.documents` alone
    where it names an index.

    The corpus is read twice as a stream and is never held in memory. A corpus that changes, or any setting that shapes
    the tokens, makes another entry of the cache; `packing` and `documents` shape none. An entry appears whole or not at
    all, whatever is killed; of several processes that want the same one, one makes it and the others wait.
    Raises: UsageError where the corpus or tokenizer is missing, empty or cannot be read; ShoestringError where the
    cache is damaged, cannot be written, or the corpus changes while it is being read.
    """
    if config.source:
        return _prepare_sources(config, config.source, cache)
    if config.kind == "chat":
        return prepare_chats(config)
    if config.kind == "answers":
        return prepare_answers(config)
    whole = _prepare(config, cache)
    return whole if config.documents is None else subset(whole, *read_index(Path(config.documents), whole))


def _prepare_sources(config: DataConfig, sources: Sequence[SourceConfig], cache: Path) -> Dataset:
    """The tokens of several corpora under one tokenizer, each kept by itself, and found again by whoever reads it with others."""
    tokenizer = config.tokenizer
    if tokenizer == "bpe":
        tokenizer = str(_shared_tokenizer(config, sources, cache))
    parts, digests = [], []
    for source in sources:
        own = prepare(replace(config.of_source(source), tokenizer=tokenizer), cache)
        parts.append(Part(source.name, own.train, own.heldout))
        digests.append([source.name, own.fingerprint])
    train, heldout = (TokenStore.joined(stores) for stores in zip(*(part[1:] for part in parts), strict=True))
    whole = hashlib.sha256(json.dumps(["domains", *digests]).encode()).hexdigest()
    return Dataset(train, heldout, own.tokenizer, whole, tuple(parts))


def _shared_tokenizer(config: DataConfig, sources: Sequence[SourceConfig], cache: Path) -> Path:
    """The folder of a tokenizer that is trained on a like sample of every source."""
    corpora = [open_corpus(source.corpus, config.of_source(source).text) for source in sources]
    shaped = config.vocabulary, PATTERN, SAMPLE, config.heldout, VERSION
    read = [str(_reading(source)) for source in sources]
    key = _key("bpe of sources", *shaped, *(corpus.stamp() for corpus in corpora), *read)
    folder = cache / "tokenizers" / key
    try:
        with _alone(folder):
            if not folder.exists():
                log.info(f"reading {len(sources)} sources for a tokenizer")
                with held_back(READER):  # each source is read again, and says it then
                    samples = [
                        survey(corpus.documents(), config.heldout, SAMPLE // len(sources)).sample for corpus in corpora
                    ]
                made = train_bpe([text for sample in samples for text in sample], config.vocabulary)
                with atomic.directory(folder) as half:
                    made.save(half)
    except OSError as error:
        raise ShoestringError(f"cannot write the cache {cache}: {error.strerror or error}") from None
    return folder


def _reading(options: DataConfig | SourceConfig) -> tuple[str, ...]:
    """How text is read, as a key of the cache has it: what was not there yet is no part of it where it is not used."""
    controls = (options.control_field,) if options.control_field else ()
    return (options.text_field, options.encoding, options.invalid, *controls)


def _prepare(config: DataConfig, cache: Path) -> Dataset:
    corpus = open_corpus(config.corpus, config.text)
    ready, shape = _tokenizer(config)
    request = _key(corpus.stamp(), absolute_corpus(config.corpus), *_reading(config), shape)
    index = cache / "index" / f"{request}.json"
    known = _indexed(index)
    if known and (cache / "tokens" / known / MANIFEST).exists():
        return open_dataset(cache / "tokens" / known)

    log.info(f"reading {config.corpus}")
    found = survey(corpus.documents(), config.heldout, 0 if ready else SAMPLE)
    if not found.documents:
        raise UsageError(f"corpus '{config.corpus}' holds no text")
    log.info(f"{found.documents:,} documents, {found.bytes / 1e6:,.1f} MB of text")
    _tell_split(found, config.heldout)
    key = _key(found.content, shape, *(["by weight"] if found.by_weight else []))
    folder = cache / "tokens" / key
    try:
        atomic.write_text(cache / "CACHEDIR.TAG", CACHE_TAG)
        with _alone(folder):
            if not (folder / MANIFEST).exists():
                _build(folder, config, corpus, found, ready)
        atomic.write_text(index, json.dumps({"tokens": key}) + "\n")
    except OSError as error:
        raise ShoestringError(f"cannot write the cache {cache}: {error.strerror or error}") from None
    return open_dataset(folder)


def _tell_split(found: Survey, asked: float) -> None:
    """Say where documents repeat, and where the held-out share is not what was asked."""
    share = found.heldout_bytes / found.bytes
    if found.distinct is not None and found.distinct < 0.9 * found.documents:
        log.info(
            f"only {found.distinct:,} of the {found.documents:,} documents differ: copies are on one side of the split"
        )
    if found.distinct == 1:
        return  # nothing is held out, which whoever needs held-out text will say
    if found.by_weight:
        log.info(
            "the heaviest documents (long, or repeated often) are for training: drawn by their hash alone, the held-out "
            f"ones would be far from {asked:.1%}"
        )
    if not asked / 2 <= share <= 2 * asked:
        log.info(f"{share:.1%} of the text is held out, not {asked:.1%}: the documents are few or uneven")


def _tokenizer(config: DataConfig) -> tuple[TextTokenizer | None, str]:
    """The tokenizer, None where it is yet to be trained, and a digest of all that shapes the tokens but the corpus."""
    if config.tokenizer == "bpe":
        return None, _key("bpe", config.vocabulary, PATTERN, SAMPLE, config.heldout, VERSION)
    path = Path(config.tokenizer).expanduser()
    if config.tokenizer != "bytes" and not path.exists():
        near = did_you_mean(config.tokenizer, ["bpe", "bytes"])
        raise UsageError(f"no tokenizer '{config.tokenizer}': no such file, nor a name of one ({near})")
    ready = byte_tokenizer() if config.tokenizer == "bytes" else TextTokenizer.load(path)
    return ready, _key(ready.fingerprint, config.heldout, VERSION)


def _key(*parts: str | float) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _indexed(index: Path) -> str | None:
    """The key an earlier call recorded; None where there is none, or where the record is not one of ours."""
    try:
        recorded = parse_json(index.read_bytes())
    except (OSError, NotJson):
        return None  # the corpus is read again, and the record written anew
    key = recorded.get("tokens") if isinstance(recorded, dict) else None
    return key if isinstance(key, str) and KEY.fullmatch(key) else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache entry, which ends with the process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    wait = "waiting for another process that is preparing the same corpus"
    with hold(folder.parent / f".{folder.name}.lock", wait=wait):
        yield


def _build(folder: Path, config: DataConfig, corpus: Corpus, found: Survey, ready: TextTokenizer | None) -> None:
    """Read the corpus a second time, and write its tokens to `folder`."""
    if ready is None:
        log.info(f"training a tokenizer on {sum(map(len, found.sample)) / 1e6:,.1f} MB of it")
        ready = train_bpe(found.sample, config.vocabulary)
        if ready.vocabulary < config.vocabulary:
            log.info(f"the vocabulary is {ready.vocabulary}, not {config.vocabulary}: no other pair occurs twice")
    log.info("tokenising")
    with atomic.directory(folder) as half, held_back(READER):  # which has said it
        ready.save(half)
        dtype = token_type(ready.vocabulary)
        train, heldout = (StoreWriter(half, name, dtype, ready.end) for name in ("train", "heldout"))
        content, lengths, stands_for = Content(), ready.byte_lengths.numpy(), 0
        for batch in batched(corpus.documents(), BATCH):
            for document, ids in zip(batch, ready.encode_batch(batch), strict=True):
                key = digest(document)
                content.add(key)
                stands_for += int(lengths[ids].sum()) - (ready.prefix if ids else 0)
                (heldout if found.holds_out(key) else train).add(ids, len(document.encode()))
        if content.hexdigest() != found.content:
            raise ShoestringError(f"corpus '{config.corpus}' changed while it was being read: run this again")
        parts = train.close(), heldout.close()
        write_manifest(half, config.corpus, ready, *parts)
    tokens = sum(part.tokens for part in parts)
    log.info(
        f"{parts[0].tokens:,} tokens to train on, {parts[1].tokens:,} held out; {found.bytes / tokens:.2f} bytes each"
    )
    if stands_for != found.bytes:
        log.warning(f"the tokenizer changes the text: its tokens stand for {stands_for:,} bytes, not {found.bytes:,}")
