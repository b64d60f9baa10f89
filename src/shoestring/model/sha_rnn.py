"""SHA-RNN: an LSTM, and where it is wanted a single head of attention to what it said."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.method import Epsilon, Whole, method
from shoestring.model.layernorm import LayerNorm
from shoestring.model.recurrent import Kept, RecurrentMixer
from shoestring.model.recurrent_cache import LayerStates, RecurrentState, TokenMemory


@method(
    "model",
    kind="token mixer",
    name="sha_rnn",
    paper="Single Headed Attention RNN: Stop Thinking With Your Head, arXiv:1911.11423",
    claim="near the best byte-level results on enwik8 in about a day on a single GPU",
    cost="4 inner (width + inner) weights, and width inner; with attention inner² more, and 4 inner FLOPs for each token before",
)
class SingleHeadedRNN(RecurrentMixer):
    """An LSTM; with `attention`, each token then attends by one head to the LSTM's answers up to its own.

    Stephen Merity, 2019, arXiv:1911.11423; LSTM: Hochreiter and Schmidhuber, 1997.

    (i, f, g, o) = W x_t + U h_{t-1} + b; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g); h_t = sigmoid(o) tanh(c_t).
    m = LN_1(h), z = LN_2(h); q = sigmoid(a_q) LN_3(W_q z), k = sigmoid(a_k) m, v = a_v m; r = z + softmax(q k^T / sqrt(inner)) v.
    y = W_out r, or W_out h without attention. x: [B, T, width] -> [B, T, width].

    Keys and values are gains of one vector m, so that a token keeps `inner` numbers. The paper attends in one of four layers: set
    `attention = true` in a pattern, and `boom` as channel mixer.

    Cost: T steps, one after the other. State: 2 inner numbers, and with attention inner numbers a token.
    Different from the paper: a_v is learnt as it is, which the author's code makes of a matrix at the start and folds later; W_out,
    so that a layer starts at zero; training carries no state from one window to the next; torch's fused LSTM is not used, as it
    neither begins anew with a document nor is counted.

    attention: above. inner: size of the LSTM's state; 0: the width. epsilon: of the norms.
    """

    compiles = False

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        attention: bool = False,
        inner: Whole = 0,
        epsilon: Epsilon = 1e-5,
    ) -> None:
        super().__init__()
        self.inner = inner or width
        self.input = nn.Linear(width, 4 * self.inner)
        self.again = nn.Linear(self.inner, 4 * self.inner, bias=False)
        self.attention = attention
        if attention:
            self.memory_norm, self.middle_norm, self.query_norm = (
                LayerNorm(self.inner, epsilon=epsilon) for _ in range(3)
            )
            self.query = nn.Linear(self.inner, self.inner)
            self.gains = nn.ParameterList([nn.Parameter(torch.empty(self.inner)) for _ in range(3)])
        self.output = nn.Linear(self.inner, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Gains of queries and keys 1/2, of values 1."""
        if self.attention:
            for gain, start in zip(self.gains, (0.0, 0.0, 1.0), strict=True):
                gain.fill_(start)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        state, memory = cache.each if isinstance(cache, LayerStates) else (cache, None)
        h = self._lstm(self.input(x), documents, state)
        if not self.attention:
            return self.output(h)
        m, z = self.memory_norm(h), self.middle_norm(h)
        gains = self.gains[0].sigmoid() * self.gains[1].sigmoid()
        q = gains.to(h.dtype) * self.query_norm(self.query(z))
        mask = None
        if memory is not None:
            m, mask = memory.append(m)
        elif documents is not None:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = ((documents[:, :, None] == documents[:, None, :]) & before)[:, None]
        mixed = F.scaled_dot_product_attention(
            q[:, None], m[:, None], m[:, None], attn_mask=mask, is_causal=mask is None and q.shape[1] > 1
        )
        return self.output(z + self.gains[2].to(h.dtype) * mixed[:, 0])

    def _lstm(self, given: Tensor, documents: Tensor | None, state: RecurrentState | None) -> Tensor:
        """h [B, T, inner] of W x + b [B, T, 4 inner]."""
        h = c = None
        if state is not None and not state.fresh:
            h, c = state.tensors["h"].to(given.dtype), state.tensors["c"].to(given.dtype)
        found, real = [], None if state is None else state.real
        for place, gates in enumerate(given.unbind(1)):
            if h is not None:
                gates = gates + self.again(h)
            i, f, g, o = gates.chunk(4, -1)
            added = i.sigmoid() * g.tanh()
            new = added if c is None else added + f.sigmoid() * c
            said = o.sigmoid() * new.tanh()
            found.append(said)
            if real is not None:
                keep = real[:, place, None]
                h = torch.where(keep, said, torch.zeros_like(said) if h is None else h)
                c = torch.where(keep, new, torch.zeros_like(new) if c is None else c)
            else:
                h, c = said, new
            if documents is not None and place + 1 < given.shape[1]:
                same = (documents[:, place] == documents[:, place + 1])[:, None]
                h, c = h * same, c * same
        if state is not None and h is not None and c is not None:
            state.tensors = {name: part.to(state.tensors[name].dtype) for name, part in (("h", h), ("c", c))}
        return torch.stack(found, 1)

    def kept(self) -> dict[str, Kept]:
        """The tensors of the LSTM's state of a row."""
        return {"h": Kept((self.inner,), "wide"), "c": Kept((self.inner,), "wide")}

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The state of `rows` rows that have read nothing."""
        state = super().new_cache(rows, room, dtype, device)
        if not self.attention:
            return state
        return LayerStates([state, TokenMemory(torch.zeros(rows, room, self.inner, dtype=dtype, device=device))])

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.inner * dtype.itemsize if self.attention else 0

    def inside_trains(self) -> bool:
        return cost.trains(self)

    def own_flops(self, shape: Shape, backward: bool) -> int:
        steps = max(0, shape.new - (0 if shape.past else 1))
        lstm = cost.linear(self.again, shape.rows * steps, backward)
        if not self.attention:
            return lstm
        keys = shape.past + shape.new
        attended = cost.attention(shape.rows, 1, shape.new, keys, self.inner, backward)
        return lstm + cost.linear(self.query, shape.tokens, backward) + attended
