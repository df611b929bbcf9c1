"""Tables of figures for terminals."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table_of_figures(title: str, figures: Iterable[tuple[str, str]]) -> "Table":
    """Each figure's name, and its value to the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for figure in figures:
        table.add_row(*figure)
    return table
