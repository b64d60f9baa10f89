"""Training a model that reads prompts with fewer tokens in each layer, whatever the budget will be."""

import math

import torch

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.length_drop import DroppingCache
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Fraction, NonNegative, Whole, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.next_token import text_loss
from shoestring.objective.token_distillation import counted, kullback_leibler, weights_of


@method(
    "objective",
    name="length_adaptive",
    paper="QuaLA-MiniLM: a Quantized Length Adaptive MiniLM, arXiv:2210.17114; Length-Adaptive Transformer: Train Once with Length "
    "Drop, Use Anytime with Search, arXiv:2010.07003",
    claim="one trained encoder for every budget: up to 8.8 times as fast on SQuAD1.1 with less than 1 % of accuracy lost",
    cost="a pass over each row, forward and backward, for each thinned model beside the whole one",
)
class LengthAdaptiveTraining:
    """The loss of the whole model, and what models that read fewer tokens of a prompt have to learn of it.

    Shira Guskin et al., 2022, arXiv:2210.17114; Gyuwan Kim and Kyunghyun Cho, 2021, arXiv:2010.07003.

        L = CE(whole) + weight mean_m mean_t KL(p_whole(t) || p_m(t)),   t from the prompt's last token on

    The models m: the smallest, n_{l+1} = ceil((1 - drop) n_l), and `drawn` others, n_{l+1} drawn evenly from that to n_l, anew for
    each row and step (LengthDrop and the sandwich rule). p_whole takes no gradient there: it is the teacher in place. The prompt of
    a row is its first tokens, from a half to all of them, drawn; which tokens stay says the cache store `length_adaptive`, with
    which the model is used.

    Different from the sources: they train encoders on a task. A causal model drops tokens of a prompt alone, and learns on text or
    on answers (`data.kind = answers`), where marks say what counts. MiniLM's distillation of a smaller model comes before, by
    `attention_relations`. For native models; rows are read one by one.

    drop: the most of a layer's tokens that the next one loses. drawn: random models beside the smallest. weight: of them.
    """

    def __init__(
        self, cross_entropy: CrossEntropy, *, drop: Fraction = 0.2, drawn: Whole = 1, weight: NonNegative = 1.0
    ) -> None:
        if drop >= 1:
            raise ValueError("length_adaptive: drop is below 1: some tokens go on")
        self.cross_entropy, self.drop, self.drawn, self.weight = cross_entropy, drop, drawn, weight

    def count(self, batch: Batch) -> float:
        """The number of targets that count, or the sum of their weights."""
        return counted(batch)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for packed documents, and a model that is not native."""
        if batch.inputs.documents is not None or batch.inputs.mask is not None:
            raise UsageError("length_adaptive reads a row as one text: give data.packing = stream")
        generator, layers = at.generator(), model.about.layers
        whole = model.read(batch.inputs)
        text = text_loss(whole, batch, self.cross_entropy)
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        flops, back = model.cost(shape).flops, self._backward(model, batch.inputs.length)
        weights = weights_of(batch).view(batch.rows, -1)
        total, counts = text.new_zeros((), dtype=torch.float32), 0.0
        for row in range(batch.rows):
            length = batch.inputs.length
            prompt = int(torch.randint(math.ceil(length / 2), length + 1, (1,), generator=generator))
            own = weights[row, prompt - 1 :]
            if not float(own.sum()):
                continue
            with torch.no_grad():
                wanted = whole.head.logits(whole.hidden[row, prompt - 1 :]).float().log_softmax(-1)
            flops += whole.head.flops(len(own))
            for number in range(1 + self.drawn):
                counts_by_layer = self.counts(layers, prompt, generator if number else None)
                cache = DroppingCache(counts_by_layer, prompt, length)
                reading = model.read(batch.inputs.take(slice(row, row + 1)), cache)
                found = reading.head.logits(reading.hidden[0, -len(own) :]).float().log_softmax(-1)
                total = total + (kullback_leibler(wanted, found) * own).sum()
                counts += float(own.sum())
                flops += round(back * reading.cost.flops) + 3 * reading.head.flops(len(own))
        divergence = total / max(counts, 1e-12)
        parts = {"next_token": text.detach(), "divergence": divergence.detach()}
        return Loss(text + self.weight * divergence, {MODEL: Charge(flops=flops)}, parts, whole.auxiliary())

    def counts(self, layers: int, prompt: int, generator: torch.Generator | None) -> list[int]:
        """Tokens of a prompt that each layer takes in. generator: draws them; None: the fewest."""
        found = [prompt]
        while len(found) < layers:
            least = max(1, math.ceil((1 - self.drop) * found[-1]))
            most = found[-1] if generator is not None else least
            found.append(int(torch.randint(least, most + 1, (1,), generator=generator)) if most > least else least)
        return found

    @staticmethod
    def _backward(model: LanguageModel, length: int) -> float:
        """Operations of a pass with its backward pass next to those of the pass alone, about: of whole rows, without the head."""
        once, both = (model.cost(Shape(1, length, outputs=0, backward=back)).flops for back in (False, True))
        return both / once
