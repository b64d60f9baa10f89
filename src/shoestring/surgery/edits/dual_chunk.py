"""Texts longer than those a model was trained on, by distances that it knows."""

from typing import Any

from shoestring.contract.attention_rule import ruled
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method
from shoestring.surgery.dual_chunk import DualChunk

TIMES = 4
"""How many times the context grows where nothing is said."""


@method(
    "surgery",
    kind="edit",
    name="dual_chunk",
    paper="Qwen2.5-1M Technical Report, arXiv:2501.15383",
    claim="models reach contexts at least 4 times longer without training; one trained on 32k tokens finds a number in a million",
    cost="queries are turned three times; scores of whole texts are worked out without a fused kernel",
)
class DualChunkAttention:
    """Read longer texts than the model was trained on, with distances between tokens that it has seen: nothing is trained.

    Dual chunk attention is by An et al. (2024), arXiv:2402.17463. With chunks of s = chunk - local tokens, a key at position j is
    turned by j mod s. A query at position i is turned by

        i mod s                          for keys of its own chunk
        min(i mod s + s, chunk - 1)      for keys of the chunk before: up to `local` tokens into a chunk distances are exact
        min(2 s - 1, chunk - 1)          for keys of chunks before these

    and all its scores are multiplied by (0.1 ln(max((i + 1) / trained, 1)) + 1)^2, the temperature of YaRN (arXiv:2309.00071). A
    text of no more than s tokens is read as before. For models with rotary positions.

    context: tokens of a text from now on; 0: 4 times as many as before.
    chunk: 0: the context that the model had, which is taken for `trained` too. local: 0: a quarter of that.

    The source takes the length of the whole prompt in place of i + 1, and the length at its time for each key; here a token's
    temperature depends on its own position alone, so that it does not matter in which passes a text is read. Its sparse attention
    is the store `sparse_prefill`, which does not go with this edit; kernels, pipelines and the training of the report are left out.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, context: Whole = 0, chunk: Whole = 0, local: Whole = 0) -> None:
        self.context, self.chunk, self.local = context, chunk, local

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The sizes. Raises: UsageError where they do not fit each other or the model, whose positions must be rotary."""
        anatomy = ruled(model, "dual_chunk")
        if any(anatomy.rules()):
            raise UsageError(
                "dual_chunk: layers of the model attend by a rule already: one edit can say how a layer attends"
            )
        layers = len(anatomy.attention_sizes())
        anatomy.turn()
        trained: Count = model.about.context
        context, chunk = self.context or TIMES * trained, self.chunk or trained
        local = self.local or max(chunk // 4, 1)
        if not local < chunk <= trained <= context:
            raise UsageError(
                f"dual_chunk: local ({local}) is below chunk ({chunk}), that no more than the model's context ({trained}), and "
                f"that no more than the new one ({context})"
            )
        if 2 * local > chunk:
            raise UsageError(
                f"dual_chunk: local ({local}) is at most half of chunk ({chunk}): distances would be too large"
            )
        return Decision({"layers": layers, "context": context, "trained": trained, "chunk": chunk, "local": local})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its longer context."""
        values: Any = decision.values
        anatomy = ruled(model, "dual_chunk")
        anatomy.extend_context(values["context"], None)
        turn, sizes = anatomy.turn(), {name: values[name] for name in ("trained", "chunk", "local")}
        anatomy.set_rules({number: DualChunk(turn, **sizes) for number in range(values["layers"])})
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError. Plain layers have one position a token."""
        raise UsageError(
            "dual_chunk: positions that depend on who looks are more than one matrix can say: it has no plain form"
        )

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        values: Any = decision.values
        return (
            f"dual_chunk: texts of {values['context']:,} tokens in place of {values['trained']:,}, at distances below "
            f"{values['chunk']:,}"
        )
