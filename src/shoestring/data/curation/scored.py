"""Documents scored by a model, each model once however many curators ask it."""

import numpy as np

from shoestring.data.curation.account import Account
from shoestring.data.curation.documents import Documents


def scored(documents: Documents, place: str, account: Account) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n] nats, int64 [n] tokens) of each document under the model at a place. Raises: OutOfTime."""
    scorer = account.scorer(place)

    def score(texts: list[str]) -> dict[str, np.ndarray]:
        found = scorer.score(texts)
        return {"nats": np.asarray(found.nats, np.float64), "tokens": np.asarray(found.tokens, np.int64)}

    found = documents.mapped("scored", {"model": scorer.digest}, score, account)
    return found["nats"], found["tokens"]
