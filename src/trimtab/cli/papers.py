"""``trimtab papers``: the published systems and how far each one is."""

from __future__ import annotations

import click

from trimtab.cli import options
from trimtab.cli.output import print_json, print_table


@click.command("papers")
@options.json_option
def verb(as_json: bool) -> None:
    """List the published systems: what they do, where they live, and how far each one is.

    Status: planned (not written), preview (works, tested, may change), stable (its interface is kept).
    """
    from trimtab.papers import load_papers

    papers = load_papers()
    if as_json:
        print_json(papers)
        return
    rows = [(str(paper.number), paper.name, paper.what, paper.venue, paper.room, paper.status) for paper in papers]
    print_table(("#", "system", "what it does", "published", "room", "status"), rows, left=6)
