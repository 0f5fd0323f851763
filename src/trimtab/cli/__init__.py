"""The command line: ``trimtab VERB``, one file a verb. Data goes to stdout, talk to stderr.

Exit status: 0 yes, 1 "the answer is no", 2 a mistake in the request. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from typing import Any

import click

from trimtab import __version__
from trimtab.errors import NoFeasibleChoice, TrimtabError

_VERBS = {
    "pack": "Pack a file of arrays, losslessly or within an error bound.",
    "unpack": "Turn a packed file back into a file of arrays.",
    "inspect": "List what a packed file holds.",
    "verify": "Check a packed file, also against its original.",
    "compare": "Measure trimtab and its peers on your own file.",
    "netlab": "Run a command on nodes joined by slow links, all on this machine.",
    "simulate": "Count what a system would do at the sizes of your own job.",
    "diagnose": "Say which rank makes a distributed job hang or slow down.",
    "doctor": "Say what runs here, how, and what is missing.",
    "papers": "List the published systems and how far each one is.",
    "demo": "Pack real model weights and a real brain scan.",
}


class _Verbs(click.Group):
    """A group whose verbs are imported when they are called, and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        return importlib.import_module(f"trimtab.cli.{cmd_name}").verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            status = 2
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f"; see '{context.command_path} --help'" if context else ""
            status = _fail(f"{error.format_message().rstrip('.')}{hint}")
        sys.exit(status or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                status = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # whoever read our output has left: say nothing, not even when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 141
        except NoFeasibleChoice as error:
            click.echo(f"trimtab: no: {' '.join(str(error).split())}", err=True)
            return 1
        except TrimtabError as error:
            return _fail(str(error))
        except OSError as error:
            return _fail(_os_error_text(error))
        except MemoryError as error:
            return _fail(f"not enough memory: {error}")
        return status


def _os_error_text(error: OSError) -> str:
    if not (error.filename and error.strerror):
        return str(error)
    hints = {
        errno.ENOENT: "; check the name",
        errno.EACCES: "; check who may read and write it: ls -ld",
        errno.ENOSPC: "; make room, or write elsewhere",
    }
    return f"{error.filename}: {error.strerror}{hints.get(error.errno or 0, '')}"


def _fail(message: str) -> int:
    click.echo(f"trimtab: error: {' '.join(message.split())}", err=True)
    return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"trimtab: warning: {' '.join(str(message).split())}", err=True)


@click.group(
    cls=_Verbs,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trimtab", message="%(prog)s %(version)s")
def main() -> None:
    """Shrink arrays and model weights within a stated loss, or none, and verify it.

    \b
    trimtab pack model.safetensors model.tt        lossless
    trimtab pack field.npy field.tt --rel 1e-3     within 0.1 % of the value range
    trimtab verify field.tt --against field.npy
    trimtab unpack field.tt field.npy
    """
