"""Text to batches: corpora, tokenizers, tokens on disk, and the order they are read in.

logging.basicConfig(level="INFO", format="%(message)s")  # to hear what is done
dataset = prepare(DataConfig(corpus="~/notes"), Path(".cache"))
source = Windows(dataset.train, context=512, seed=0)
batch = source.batch(start=0, count=8)
"""

from shoestring.contract.batch import IGNORED, Batch
from shoestring.data.bpe import byte_tokenizer, train_bpe
from shoestring.data.config import DataConfig, Packing
from shoestring.data.corpus import Corpus, open_corpus
from shoestring.data.dataset import Dataset, open_dataset, require
from shoestring.data.order import Permutation
from shoestring.data.prepare import prepare
from shoestring.data.store import TokenStore
from shoestring.data.tokenizer import TextStream, TextTokenizer
from shoestring.data.windows import BatchSource, Windows

__all__ = [
    "IGNORED",
    "Batch",
    "BatchSource",
    "Corpus",
    "DataConfig",
    "Dataset",
    "Packing",
    "Permutation",
    "TextStream",
    "TextTokenizer",
    "TokenStore",
    "Windows",
    "byte_tokenizer",
    "open_corpus",
    "open_dataset",
    "prepare",
    "require",
    "train_bpe",
]
