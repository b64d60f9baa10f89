"""A judge of which mismatches of a draft matter."""

from collections.abc import Sequence

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.acceptances.autojudge import NAME, Mismatch, fit, mine
from shoestring.decode.engine import Engine
from shoestring.decode.preparation import Given, Prepared
from shoestring.decode.request import Request
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method


@method(
    "decode",
    kind="preparation",
    name=NAME,
    paper="AutoJudge: Judge Decoding Without Manual Annotation, arXiv:2504.20039",
    claim="mismatches are labelled by whether the answer stays right, without people",
    cost="an answer of the model for each mismatch of each text",
)
def autojudge(
    target: LanguageModel, texts: Sequence[Given], draft: LanguageModel, *, tokens: Count = 64, recall: Fraction = 0.9
) -> Prepared:
    """Find where the draft model's token makes a right answer wrong, and train the judge of the acceptance `autojudge` on that.

    target: the model that will write. texts: questions whose answers can be checked. draft: the draft model.
    tokens: of an answer at most. recall: share of the important mismatches that must be found.
    """
    engine, charge, found = Engine(target, rows=1), NOTHING, list[Mismatch]()
    for text in texts:
        if text.check is None:
            raise UsageError("autojudge learns from answers that can be checked: give --task NAME in place of text")

        def write(begun: tuple[int, ...], most: int = text.prompt + tokens) -> tuple[Sequence[int], Charge]:
            if len(begun) >= most:
                return (), NOTHING
            (answer,) = engine.run([Request(begun, Sampling(temperature=0), most - len(begun))])
            return answer.tokens, answer.spent.charge

        mismatches, took = mine(write, target, draft, text.tokens[: text.prompt], text.check)
        found += mismatches
        charge += took
    judge = fit(found, recall=recall)
    important = sum(each.important for each in found)
    line = f"{important} of {len(found)} mismatches matter; {judge.recall:.0%} of these found, {judge.kept:.0%} of others kept"
    return Prepared(judge.save, charge, (line,))
