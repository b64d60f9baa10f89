"""Letting models write: `Engine` answers many requests at once, `generate` continues one text."""

from shoestring.decode.engine import Engine
from shoestring.decode.generate import generate
from shoestring.decode.request import Answer, AnswerSpent, Event, Request, Stop
from shoestring.decode.sampling import Sampling

__all__ = ["Answer", "AnswerSpent", "Engine", "Event", "Request", "Sampling", "Stop", "generate"]
