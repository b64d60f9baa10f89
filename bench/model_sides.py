"""The sides of ternary_models.py: one model with random weights, packed by us, by torch and by llama.cpp in several types."""

import ctypes
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode import Sampling, generate
from shoestring.errors import ShoestringError, UsageError
from shoestring.model import Transformer
from shoestring.model.config import ModelConfig
from shoestring.shrink.conduct import dense
from shoestring.shrink.gguf_file import write_gguf
from shoestring.shrink.rounding import pack, ternaries

HEAD_BITS = 8
"""Of embedding and head, ours; llama.cpp's ternary files have Q8_0."""


class Side(Protocol):
    """A loaded model. bytes: of its file, or of its weights in memory."""

    bytes: int

    def tokens(self, prompt: list[int], count: int) -> Iterator[int]:
        """The greedy continuation, from an empty cache, each token as soon as it is known."""


Build = Callable[[], Side]


class Ours:
    """A `Transformer`, packed or dense, by `generate`."""

    def __init__(self, model: Any, size: int) -> None:
        self.model, self.bytes = model, size

    def tokens(self, prompt: list[int], count: int) -> Iterator[int]:
        return generate(self.model, prompt, Sampling(temperature=0), max_new_tokens=count)


class LlamaCpp:
    """A GGUF file in llama.cpp, by its C interface: a token's cost has no Python in it but the call and the argmax."""

    def __init__(self, api: ModuleType, file: Path, context: int, threads: int, stack: ExitStack) -> None:
        self.api, self.bytes = api, file.stat().st_size
        model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not model:
            raise ShoestringError(f"llama.cpp does not load {file.name}")
        stack.callback(api.llama_model_free, model)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(model, settings)
        stack.callback(api.llama_free, self.context)

    def tokens(self, prompt: list[int], count: int) -> Iterator[int]:
        api = self.api
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        new = prompt
        for _ in range(count):
            held = (api.llama_token * len(new))(*new)
            if api.llama_decode(self.context, api.llama_batch_get_one(held, len(new))):
                raise ShoestringError("llama.cpp could not decode")
            logits = api.llama_get_logits_ith(self.context, -1)
            row = torch.frombuffer(
                ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents, dtype=torch.float32
            )
            new = [int(row.argmax())]
            yield new[0]


def llama_cpp() -> ModuleType:
    """Raises: UsageError where it is not installed."""
    try:
        found = importlib.import_module("llama_cpp")
    except ImportError:
        raise UsageError("llama-cpp-python is not installed (its build takes minutes)") from None
    # its log, a line for every tensor, goes nowhere; the callback has to live as long as the library
    found.shoestring_silence = found.llama_log_callback(lambda *_: None)  # type: ignore[attr-defined]
    found.llama_log_set(found.shoestring_silence, ctypes.c_void_p())
    found.llama_backend_init()
    return found


def random_model(config: ModelConfig) -> Transformer:
    """With weights such that every matrix keeps the size of what goes through it."""
    model = Transformer(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


class Sides:
    """Builds the sides of one model. Files are made in `folder`, once. stack: closes what is loaded."""

    def __init__(
        self, config: ModelConfig, tokenizer: TextTokenizer, threads: int, folder: Path, stack: ExitStack
    ) -> None:
        self.config, self.tokenizer, self.threads, self.folder, self.stack = config, tokenizer, threads, folder, stack
        self.model = random_model(config)
        self.chosen = ternaries(self.model)

    def builds(self) -> dict[str, Build]:
        """What builds each side, ours first."""
        return {
            "ternary2": lambda: self.packed("ternary2"),
            "ternary1.6": lambda: self.packed("ternary1.6"),
            "bf16": lambda: self.dense(torch.bfloat16),
            "fp32": lambda: self.dense(torch.float32),
            "int8_dynamic": self.int8_dynamic,
            "TQ2_0": lambda: self.llama("TQ2_0"),
            "TQ1_0": lambda: self.llama("TQ1_0"),
            "Q4_0": lambda: self.llama("Q4_0"),
            "F16": lambda: self.llama("F16"),
        }

    def packed(self, layout: str) -> Side:
        made = pack(self.model, self.chosen, layout, HEAD_BITS)
        return Ours(made, sum(held.numel() * held.element_size() for held in made.state_dict().values()))

    def dense(self, dtype: torch.dtype) -> Side:
        made = dense(self.model, self.chosen).to(dtype)
        return Ours(made, sum(p.numel() * p.element_size() for p in made.parameters()))

    def int8_dynamic(self) -> Side:
        """Every linear layer by torch's dynamic quantisation; the tied embedding and head stay float32."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this interface of torch is to move elsewhere
            made = torch.ao.quantization.quantize_dynamic(dense(self.model, self.chosen), {nn.Linear}, torch.qint8)
        table = self.config.vocabulary * self.config.width
        return Ours(made, 4 * table + sum(q.codes.numel() for q in self.chosen.items().values()))

    def llama(self, kind: str) -> Side:
        """Our export for the ternary types; llama.cpp's own conversion of it, table and matrices, for the others."""
        api = llama_cpp()
        file = self.folder / f"{kind}.gguf"
        if not file.exists():
            ternary = kind if kind.startswith("TQ") else "TQ2_0"
            source = self.folder / f"{ternary}.gguf"
            if not source.exists():
                plain = dense(self.model, self.chosen)
                write_gguf(source, plain, self.tokenizer, ternary, embedding=HEAD_BITS)  # type: ignore[arg-type]
            if file != source:
                self._converted(api, source, file, kind)
        return LlamaCpp(api, file, self.config.context, self.threads, self.stack)

    @staticmethod
    def _converted(api: ModuleType, source: Path, file: Path, kind: str) -> None:
        settings = api.llama_model_quantize_default_params()
        settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
        settings.allow_requantize, settings.pure = True, True
        if api.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(settings)):
            raise ShoestringError(f"llama.cpp does not convert to {kind}")
