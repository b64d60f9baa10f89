"""What commands print: text as it is, whatever names and contents it quotes."""

from typing import Any

from rich.console import Console

from shoestring.errors import printable

KEPT = "\n\t\u00a0\u2009\u202f\u3000\u200c\u200d"
"""Characters that are none to see and do no harm: spaces, ends of lines, and what joins letters and emoji."""


class Screen(Console):
    """rich's console, to which a text is no markup: brackets and colons in names stay, and what would move the cursor or set
    the terminal's title is escaped. Bold is `style="bold"`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Any:
        """Every text that is printed, alone or within a table, comes by here."""
        return super().render_str(printable(text, KEPT), **options)
