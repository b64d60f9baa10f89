"""What edits decide where several processes have one model: rank 0 decides, and the others read it in the run's folder."""

from collections.abc import Sequence
from pathlib import Path

from shoestring.budget.charge import Charge
from shoestring.config import Choice
from shoestring.contract.edit import Decision, Edit, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.parallel.json_gather import gather_json
from shoestring.train.edits import read_decision, read_decisions, write_decision


class JointDecisions:
    """The decisions of a run's edits. All processes call each of these together.

    run: the run's folder, which all of them can read.
    leads: whether this process decides.
    """

    def __init__(self, run: Path, leads: bool) -> None:
        self.run, self.leads = run, leads

    def known(self, edits: Sequence[Choice]) -> list[Decision] | None:
        """As `read_decisions`."""
        found = read_decisions(self.run, edits) if self.leads else None
        if not edits or not gather_json(found is not None)[0]:
            return None
        return found if self.leads else read_decisions(self.run, edits)

    def decide(self, place: int, name: str, edit: Edit, model: LanguageModule, evidence: Evidence) -> Decision:
        """As `decide_here`; what deciding took is on every process's ledger, once. Raises: what deciding raises, in each."""
        made, said = None, dict[str, object]()
        if self.leads:
            try:
                made = edit.decide(model, evidence)
                write_decision(self.run, place, name, made)
                said = {"spent": made.spent.as_dict()}
            except ShoestringError as error:
                said = {"wrong": str(error), "usage": isinstance(error, UsageError)}
        told = gather_json(said)[0]
        if "wrong" in told:
            raise (UsageError if told["usage"] else ShoestringError)(told["wrong"])
        if made is not None:
            return made
        read = read_decision(self.run, place, name)
        return Decision(read.values, read.tensors, Charge(**told["spent"]))
