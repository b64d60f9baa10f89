"""Trees of drafts, of a smaller model which is itself given drafts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.choosing import ahead, changed_logits, next_token
from shoestring.decode.draft_state import DraftState
from shoestring.decode.drafters.ngram import NGram
from shoestring.decode.row import Draft, Row
from shoestring.decode.sampling import likeliest
from shoestring.decode.work import Read, RowWork
from shoestring.method import Count, Fraction, Whole, method


@dataclass
class Node:
    """A token that may come.

    parent: the number of the node before it among all of its tree, -1: the text. score: its log-probability, with all before it.
    read: whether the draft model was asked what follows it.
    """

    token: int
    parent: int
    score: float = math.nan
    read: bool = False


@dataclass
class Tree:
    """What was thought of after one text.

    own: the draft model's row. most: tokens of the draft. nodes: all. chosen: those of the draft so far, parents first.
    """

    own: Row
    most: int
    nodes: list[Node] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    def draft(self) -> Draft:
        """The chosen nodes."""
        places = {number: place for place, number in enumerate(self.chosen)} | {-1: -1}
        parents = [places[self.nodes[number].parent] for number in self.chosen]
        return Draft([self.nodes[number].token for number in self.chosen], parents)

    def choose(self, count: int, least: float) -> None:
        """Keep the `count` most probable nodes, of those above `least`. No node is more probable than its parent."""
        able = [number for number, node in enumerate(self.nodes) if node.score >= least]
        able.sort(key=lambda number: (-self.nodes[number].score, number))
        self.chosen = sorted(able[:count])

    def branch(self, number: int) -> Row:
        """The draft model's row, as if the text went on up to this node."""
        path = list[int]()
        while number >= 0:
            path.append(self.nodes[number].token)
            number = self.nodes[number].parent
        return ahead(self.own, path[::-1])


@method(
    "decode",
    kind="drafter",
    name="staged",
    paper="Accelerating LLM Inference with Staged Speculative Decoding, arXiv:2308.04623",
    claim="3.16x lower single-batch latency with a 762M GPT-2-L, with unchanged output quality",
    cost="`passes` passes of the draft model, each over the whole tree so far",
)
class Staged:
    """A smaller model grows a tree of what may come, from a line that the text's own n-grams propose to it.

    First stage: the n-gram drafter proposes a line, and one pass of the draft model judges it. Second stage: at the text's end and
    at each node that was read, the draft model names the `branch` likeliest tokens; of all nodes, those most probable with all
    that stands before them make up the tree, and the next pass reads it. The model that writes then checks the whole tree in
    one pass. What the draft model would choose itself (`Row.draw`) counts as its likeliest token, at any temperature.

    The paper grows the tree along with the draft model's decoding; here each pass reads the tree anew, which takes no
    cache of branches. Its size is fixed, not tuned.

    draft: the smaller model, of the same vocabulary.
    target: the model that writes.
    most: tokens of a tree.
    passes: of the draft model.
    branch: tokens after each.
    least: the least probability of a token with all before it, as the draft model sees it.
    room: tokens that are kept of all rows; 0: the model's context, at least 2^15.
    """

    wants_hidden = False

    def __init__(
        self,
        draft: LanguageModel,
        target: LanguageModel,
        *,
        most: Count = 16,
        passes: Count = 4,
        branch: Count = 3,
        least: Fraction = 0.02,
        room: Whole = 0,
    ) -> None:
        self.most, self.passes, self.branch = most, passes, branch
        self.least = math.log(least) if least else -math.inf
        self.state = DraftState(draft, target, room)
        self.first = NGram(most=most)

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        """As `Drafter.propose`."""
        context, limits = self.state.model.about.context, dict[int, int]()
        for row, limit in zip(rows, most, strict=True):
            limits[row.number] = max(0, min(limit, self.most, context - len(row.tokens)))
        able = [row for row in rows if limits[row.number]]
        own = self.state.ready(able, limits)
        lines = self.first.propose(able, [limits[row.number] for row in able])
        trees: dict[int, Tree] = {}
        for row, line in zip(able, lines, strict=True):
            if row.number in own:
                nodes = [Node(token, place - 1) for place, token in enumerate(line.tokens)]
                trees[row.number] = Tree(own[row.number], limits[row.number], nodes, list(range(len(nodes))))
        growing = list(trees.values())
        for number in range(1, self.passes + 1):
            growing = self._grown(growing, last=number == self.passes)
        return [trees[row.number].draft() if row.number in trees else Draft() for row in rows]

    def _grown(self, trees: Sequence[Tree], *, last: bool) -> list[Tree]:
        """Read these trees, and grow each by its part, at last to its full size. Returns those of which there is more to read."""
        works = [RowWork(tree.own, tree.own.tokens[tree.own.held :], tree.draft()) for tree in trees]
        again = list[Tree]()
        for tree, work, read in zip(trees, works, self.state.read(works) if works else (), strict=True):
            if read is None:
                tree.choose(0, 0.0)  # there is no room
                continue
            self._judge(tree, work, read)
            good = sum(node.read and node.score >= self.least for node in tree.nodes)
            tree.choose(tree.most if last else min(tree.most, good + math.ceil(tree.most / self.passes)), self.least)
            if any(not tree.nodes[number].read for number in tree.chosen):
                again.append(tree)
        return again

    def _judge(self, tree: Tree, work: RowWork, read: Read) -> None:
        """Score what stands after the text and after each node that was read for the first time."""
        rooted = bool(work.tokens)
        asked = [(-1, read.logits[0])] if rooted else []
        for place, number in enumerate(tree.chosen):
            if not tree.nodes[number].read:
                asked.append((number, read.logits[place + rooted]))
        for number, logits in asked:
            self._children(tree, number, logits)

    def _children(self, tree: Tree, number: int, logits: Tensor) -> None:
        """Score the nodes after this one, and add those that are missing of the likeliest."""
        row, before = tree.branch(number), 0.0
        if number >= 0:
            tree.nodes[number].read = True
            before = tree.nodes[number].score
        logits = changed_logits(row, logits)
        chances = (logits.double() / (row.request.sampling.temperature or 1.0)).log_softmax(0)
        best = likeliest(chances, self.branch).tolist()
        choice = next_token(row, logits)
        scores = {token: float(chances[token]) for token in best} | {choice: float(chances[best[0]])}
        for node in tree.nodes:
            if node.parent == number:  # of the n-grams
                node.score = before + scores.pop(node.token, float(chances[node.token]))
        for token, score in scores.items():
            if token not in row.request.ends and score > -math.inf:
                tree.nodes.append(Node(token, number, before + score))

    def spent(self) -> Charge:
        """As `Drafter.spent`."""
        return self.state.spent()

    def drop(self, row: Row) -> None:
        """As `Drafter.drop`."""
        self.state.drop(row)
        self.first.drop(row)
