"""The interface of a method of kind 'curation'."""

from typing import Protocol

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents


class Curator(Protocol):
    """Looks at documents, says what it found of each, and which are dropped and why.

    It sees only those that the curators before it kept. What takes long it works out through `Documents.mapped`, which keeps it.
    """

    def __call__(self, documents: Documents, account: Account) -> Column:
        """A column of these documents: the same for the same documents and options. Raises: OutOfTime."""
        ...
