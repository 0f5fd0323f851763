"""The generated parts of README and documentation: these print through cog, see ``make generate``."""

from __future__ import annotations

import importlib
import inspect
import re

from trimtab import kernels
from trimtab.papers import Paper, load_papers

JOBS = {
    "store models and fields": "codecs",
    "feed training": "data",
    "train": "train",
    "send between workers": "comm",
    "shrink models": "compact",
    "run layers faster": "nn",
    "serve": "serve",
    "find slow and hung workers": "diagnose",
    "quantum states, materials": "science",
    "know what hardware costs": "hardware",
}
"""What a user wants to do -> the folder of the package that does it."""

PAYLOADS = ("groups", "float8", "hadamard")
"""Kernels that make what goes over a network, not into files."""

LAYOUTS = {
    "enec": "trimtab.codecs.enec",
    "enec: differences": "trimtab.codecs.enec_delta",
    "sz": "trimtab.codecs.sz",
    "sz: interpolated tiles": "trimtab.codecs.sz_interpolated",
    "sz: the body of an interpolated tile": "trimtab.codecs.interpolation",
    "sz: pyramids": "trimtab.codecs.pyramid",
    "aesz": "trimtab.codecs.aesz",
    "aesz: tiles in blocks": "trimtab.codecs.aesz_tile",
    "aesz: models": "trimtab.codecs.autoencoder",
    "gwlz": "trimtab.codecs.gwlz",
    "sparse": "trimtab.codecs.sparse",
    "embedding": "trimtab.codecs.embedding",
    "embedding: slices": "trimtab.codecs.embedding_slice",
    "blocks": "trimtab.codecs.blocks",
}
"""Heading -> the module whose docstring describes the bytes of a codec, or of a part of it."""


def jobs_table() -> str:
    """Return the table of jobs, and how far the systems for each are."""
    papers = load_papers()
    rows = []
    for job, folder in JOBS.items():
        systems = [paper for paper in papers if paper.room.split("/")[0] == folder]
        here = [f"**{paper.name}**, {paper.what} ({paper.status})" for paper in systems if paper.status != "planned"]
        if folder == "codecs":
            here.append("**SZ**, error-bounded compression of arrays (preview)")
        planned = ", ".join(paper.name for paper in systems if paper.status == "planned")
        rows.append(f"| {job} | {'<br>'.join(here) or '-'} | {planned} |")
    return "\n".join(["| to | there is | planned |", "| --- | --- | --- |", *rows])


def papers_table() -> str:
    """Return the table of all systems."""
    rows = [
        f"| {paper.number} | {paper.name} | {_reference(paper)} | {_place(paper)} | {paper.status} |"
        for paper in load_papers()
    ]
    return "\n".join(["| # | system | paper | place | status |", "| --- | --- | --- | --- | --- |", *rows])


def differences() -> str:
    """Return, for each system that is here, where it differs from its paper, and why."""
    parts = []
    for paper in load_papers():
        if paper.differences:
            parts += [f"### {paper.name}", "", *(f"- {difference}" for difference in paper.differences), ""]
    return "\n".join(parts).rstrip()


def command_help() -> str:
    """Return the help of the command and of each of its verbs."""
    from trimtab.cli import main

    parent = main.make_context("trimtab", [], resilient_parsing=True, terminal_width=100, max_content_width=100)
    parts = ["## trimtab", "", _code(main.get_help(parent))]
    for verb in main.list_commands(parent):
        command = main.get_command(parent, verb)
        assert command is not None, verb
        context = command.make_context(verb, [], parent=parent, resilient_parsing=True)
        parts += ["", f"## trimtab {verb}", "", _code(command.get_help(context))]
    return "\n".join(parts)


def layouts() -> str:
    """Return what the modules of codecs and kernels say about their bytes."""
    parts = [f"### {codec}\n\n{_markdown(module)}" for codec, module in LAYOUTS.items()]
    parts += ["## Kernels", "The specification of each is its `ref.py`; this is what it says of the bytes."]
    parts += [_kernel(name) for name in kernels.operations() if name not in PAYLOADS]
    parts += ["## Payloads", "No file holds these: `trimtab.codecs.wire` sends them over networks."]
    parts += [_kernel(name) for name in PAYLOADS]
    return "\n\n".join(parts)


def _kernel(name: str) -> str:
    return f"### {name}\n\n{_markdown(f'trimtab.kernels.{name}.ref')}"


def _markdown(module: str) -> str:
    """Return the docstring of a module as Markdown."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    text = re.sub(r"^(.+)\n(=+|-+)$", r"#### \1\n", text, flags=re.M)
    return re.sub(r"::$", ":", text.replace("``", "`"), flags=re.M)


def _reference(paper: Paper) -> str:
    return f"*{paper.title}*, {paper.venue}" if paper.title else f"{paper.what}, {paper.venue}"


def _place(paper: Paper) -> str:
    return f"`{paper.import_path.replace(':', '.') if paper.import_path else paper.room}`"


def _code(text: str) -> str:
    """Return text as a Markdown code block."""
    return f"```text\n{text.rstrip()}\n```"
