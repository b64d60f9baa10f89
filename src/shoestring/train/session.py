"""A training run from its first second to its last, or on from its last checkpoint."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.budget import busy_waiting
from shoestring.budget.ledger import CALIBRATION, Ledger, Totals, totals_from_dict, totals_to_dict
from shoestring.contract.model import LanguageModule
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError
from shoestring.plan import rules
from shoestring.sync.transport.base import PeerLost
from shoestring.train import checkpoint
from shoestring.train.allocator import hand_back_freed_memory
from shoestring.train.assembly import Parts, assemble
from shoestring.train.base import kept_of, with_frozen
from shoestring.train.base_optimizer import take_optimizer
from shoestring.train.closing import draw_sample, sample_prompt, summary
from shoestring.train.company import CheckpointedWorker
from shoestring.train.config import RunConfig
from shoestring.train.edits import decide_here, read_decisions, write_decisions
from shoestring.train.evaluate import Heldout
from shoestring.train.execution import compiles
from shoestring.train.health import Diverged
from shoestring.train.loop import Loop, NothingTrained
from shoestring.train.milestones import Milestones
from shoestring.train.old_text import gain_and_forgetting, old_evaluator, replayed_domains
from shoestring.train.participation import FixedWorkers, Participation
from shoestring.train.run_folder import JsonLines, RunFolder
from shoestring.train.speed import Speed
from shoestring.train.stopping import StopRequest

log = logging.getLogger(__name__)

Record = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    stopped: 'finished' or 'interrupted'.
    signal: what interrupted it.
    summary: as in summary.json.
    sample: text drawn from the model, prompt included; empty where none was.
    """

    stopped: str
    signal: int | None
    summary: dict[str, Any]
    sample: str


def require_same_text(fingerprint: str, dataset: Dataset, config: RunConfig) -> None:
    """Raises: ShoestringError where a dataset is not the one of that fingerprint."""
    if fingerprint != dataset.fingerprint:
        raise ShoestringError(
            f"the corpus {config.data.corpora} or the tokenizer is not what this run began with: it cannot go on exactly; "
            "--data.corpus PATH says where the same text is, and --model.base RUN begins a new run from its weights"
        )


class Session:
    """A run in hand: its parts, its folder and its ledger.

    view: is given every line of metrics, as it is written.
    participation: the place of this process in the run; None: it has all workers.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        ledger: Ledger,
        dataset: Dataset,
        view: Record,
        participation: Participation | None = None,
    ) -> None:
        self.config, self.folder, self.ledger, self.dataset = config, folder, ledger, dataset
        self.view = view
        participation = participation or FixedWorkers()
        self._beside_others = busy_waiting.crowded_seconds()
        with ledger.clock("start"):
            self.parts: Parts = self._assemble(participation)
            hand_back_freed_memory()  # of weights that others took the place of
            if config.train.base_optimizer:
                log.info(take_optimizer(config.model.base, self.parts))
            joined = participation.join(config, self.parts, ledger)
        self.worker, self.company, self.joined = joined.worker, joined.company, joined
        self.checkpoints = folder.checkpoints if joined.shared is None else joined.shared.folder
        with ledger.clock("data"):
            old = old_evaluator(config, dataset, self.parts.evaluator.judge)
        for line in self.parts.claims.splitlines():
            log.info(line)
        self.metrics: JsonLines | None = None
        self._kept: tuple[int, int] | None = None
        self.milestones = Milestones(folder)
        kept = kept_of(self.parts.model, dict(self.parts.model.named_parameters()), config)
        size = sum(p.numel() * p.element_size() for p in kept.values())
        self.loop = Loop(
            worker=self.worker,
            company=self.company,
            schedule=self.parts.schedule,
            source=joined.source,
            evaluator=self.parts.evaluator,
            budget=participation.budget(config),
            ledger=ledger,
            settings=config.train,
            sequences=self.parts.sequences,
            milestones=self.parts.milestones,
            milestone=self._milestone,
            record=self._record,
            checkpoint=self._checkpoint,
            speed=Speed(
                config.budget.seconds,
                evaluated=self.parts.evaluator.sequences + (0 if old is None else old.sequences),
                sampling=rules.sampling_seconds(config.train.sample_tokens),
                saving=rules.saving_seconds(size),
            ),
            first_cause="compile" if compiles(config.execution) else "start",
            old=old,
        )

    def _assemble(self, participation: Participation) -> Parts:
        """The parts; what the edits decide is kept in the folder, and taken from there by a run that goes on."""
        joint, edits = participation.decisions, self.config.edits
        decisions = read_decisions(self.folder.path, edits) if joint is None else joint.known(edits)
        decide = decide_here if joint is None else joint.decide
        parts = assemble(self.config, self.dataset, participation.rank, decisions, decide)
        if decisions is None:
            if joint is None:
                write_decisions(self.folder.path, parts.applied)
            for one in parts.applied:
                self.ledger.charge(one.decision.spent, CALIBRATION)
        return parts

    def run(self, finish: Callable[[], Outcome] | None = None) -> Outcome:
        """Train until the budget is spent or the process is asked to stop.

        finish: what is done once the budget is spent; None: `self.finish`.
        Raises: Diverged; NothingTrained; PeerLost where another worker is gone.
        """
        self.metrics = JsonLines(self.folder.metrics)
        try:
            with StopRequest() as stop:
                try:
                    ended = self.loop.run(stop)
                except NothingTrained as error:
                    self.summarise("failed", {"reason": str(error)})
                    raise
                except Diverged as error:
                    self.summarise("failed", {"reason": str(error)})
                    raise self._with_advice(error) from None
                except PeerLost:
                    if stop.asked is None:
                        raise
                    # they were asked too, some before they could wait for the round in which all stop
                    log.info("the other workers have stopped already: this worker keeps its last checkpoint")
                    return Outcome("interrupted", stop.asked, self.summarise("interrupted"), "")
                if ended == "interrupted":
                    self.loop.save()
                    return Outcome(ended, stop.asked, self.summarise(ended), "")
                return (finish or self.finish)()
        finally:
            self.metrics.close()

    def finish(self) -> Outcome:
        """Judge the model, keep it, and let it write a sample."""
        self.company.conclude()
        if not self.company.leads:
            self.loop.save()
            return Outcome("finished", None, self.summarise("finished"), "")
        heldout = self.loop.evaluate(last=True)
        self.company.finish()
        self.loop.save()
        if self.parts.milestones:
            self.milestones.add(1.0, self._here(), heldout)
        with self.ledger.clock("evaluate"):
            prompt = sample_prompt(self.config, self.dataset)
            model: LanguageModule | None = self.parts.model
            if self.joined.whole is not None:  # of which no process makes a whole one for nothing
                model = self.joined.whole() if self.config.train.sample_tokens else None
            tokenizer = self.dataset.tokenizer
            sample = draw_sample(model, tokenizer, self.config, self.ledger, prompt) if model else ""
        if sample:
            line = {"step": self.loop.position.step, "prompt": prompt, "text": sample}
            samples = JsonLines(self.folder.path / "samples.jsonl")
            samples.append(line)
            samples.close()
        found: dict[str, Any] = {
            "heldout_loss": heldout.loss,
            "bits_per_byte": heldout.bits_per_byte,
            "heldout_targets": heldout.targets,
        }
        judge = self.parts.evaluator.judge
        if judge is not None:
            found["heldout_figure"] = judge.figure
        if heldout.domains:
            found["heldout_domains"] = dict(heldout.domains)
        if heldout.cut_short:
            found["heldout_cut_short"] = True
        if self.loop.judging.old_found is not None:
            replayed = replayed_domains(self.config.data)
            both = gain_and_forgetting(self.folder.read_metrics(), heldout, self.loop.judging.old_found, replayed)
            found["tuning"] = {"old_corpus": self.config.old.corpus, **both}
        noise = self.worker.noise_scale
        if noise is not None:
            found["critical_batch"] = noise.critical_batch
        return Outcome("finished", None, self.summarise("finished", found), prompt + sample)

    def summarise(self, stopped: str, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write summary.json, and return it.

        stopped: 'finished', 'interrupted' or 'failed'.
        found: what it says beside what the run has spent.
        """
        self.ledger.write("end", stopped=stopped)
        processes, step = self.company.processes, self.loop.position.step
        own = summary(self.config, self.parts.model, step, self.ledger, stopped, processes)
        own["seconds_beside_others"] = round(busy_waiting.crowded_seconds() - self._beside_others, 1)
        content = {**own, **self.company.summary(own), **(found or {})}
        self.folder.write_json("summary.json", content)
        return content

    def _record(self, line: Mapping[str, Any]) -> None:
        assert self.metrics is not None
        self.metrics.append(line)
        self.view(line)

    def _here(self) -> dict[str, Any]:
        totals = self.ledger.totals
        step = self.loop.position.step
        return {"step": step, "seconds": totals.wall_clock, "flops": totals.flops, "tokens": totals.tokens}

    def _milestone(self, share: float, heldout: Heldout) -> None:
        """Keep the checkpoint of a share of the budget that the schedule holds ready to be used."""
        self.milestones.add(share, self._here(), heldout)
        self.loop.save()
        log.info(f"{share:.0%} of the budget: held-out loss {heldout.loss:.4f}, checkpoint kept")

    def _checkpoint(self) -> None:
        state = {
            **self.loop.state(),
            "totals": totals_to_dict(self.ledger.totals),
            "data": self.dataset.fingerprint,
        }
        keep, spared = self.config.train.keep, self.milestones.steps()
        here = self.loop.position.step, self.loop.returns
        if self.joined.shared is not None:
            self.joined.shared.save(self.checkpoints, here[0], state, keep, spared)
            return
        worker = self.worker
        assert isinstance(worker, CheckpointedWorker)
        tensors, state["optimizer"] = worker.state()
        snapshot = checkpoint.Snapshot(kept_of(self.parts.model, worker.weights(), self.config), tensors, state)
        if here != self._kept and here[0] in checkpoint.list_checkpoints(self.folder.checkpoints):
            checkpoint.remove(self.folder.checkpoints, here[0])  # of a past that the run did not go on from
        checkpoint.save(self.folder.checkpoints, here[0], snapshot, keep=keep, spared=spared)
        self._kept = here

    def restore(self, step: int | None) -> None:
        """Back to a checkpoint (None: the newest; the first step when none was written), on the ledger too."""
        if step is None and not checkpoint.list_checkpoints(self.checkpoints):
            log.info("no checkpoint was written yet: beginning again from the first step")
            self.ledger.roll_back(Totals())
            self.folder.roll_back_metrics(-1)  # what was judged before the first step is judged again
            self.milestones.roll_back(0)
            return
        shared = self.joined.shared
        found, snapshot = (checkpoint.load if shared is None else shared.load)(self.checkpoints, step)
        require_same_text(snapshot.state["data"], self.dataset, self.config)
        weights = snapshot.model
        if shared is None:
            weights = with_frozen(self.parts.model, weights, self.config)
        self.worker.restore(weights, snapshot.optimizer, snapshot.state["optimizer"])
        self.loop.restore(snapshot.state)
        self._kept = self.loop.position.step, self.loop.returns
        self.ledger.roll_back(totals_from_dict(snapshot.state["totals"]))
        self.folder.roll_back_metrics(found)
        self.milestones.roll_back(found)
        for later in checkpoint.list_checkpoints(self.folder.checkpoints):
            if later > found:
                checkpoint.remove(self.folder.checkpoints, later)
        log.info(f"resumed from the checkpoint of step {found}")

    def _with_advice(self, error: Diverged) -> Diverged:
        steps = checkpoint.list_checkpoints(self.folder.checkpoints)
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint had been written yet"
        rate = self.config.optim.options["lr"]
        advice = f"train again with a lower learning rate, say --optim.lr {rate / 2:g} (now {rate:g})"
        return Diverged(f"{error}; {kept}; {advice}")
