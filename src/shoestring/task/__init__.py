"""Questions with answers that can be checked."""

from shoestring.task.task import SPLITS, Problem, Score, Split, Task

__all__ = ["SPLITS", "Problem", "Score", "Split", "Task"]
