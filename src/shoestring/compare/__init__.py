"""Judging: two ways or more of training, run at equal cost on paired seeds, and what their difference shows."""

from shoestring.compare.conduct import PlannedRun, Trials, conduct
from shoestring.compare.design import Design
from shoestring.compare.record import RunLog, RunRecord
from shoestring.compare.verdict import Verdict, judge

__all__ = ["Design", "PlannedRun", "RunLog", "RunRecord", "Trials", "Verdict", "conduct", "judge"]
