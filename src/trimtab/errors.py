"""Every error a user can meet, as one tree.

A message says what is wrong, where, what was expected and what was got, and the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TrimtabError(Exception):
    """The root of all errors that trimtab raises on purpose."""


class UsageError(TrimtabError, ValueError):
    """The caller asked for something that cannot be; the data is not at fault."""


class BoundError(UsageError):
    """An error bound is negative, zero, NaN, or not one that the codec can promise."""


class ShapeError(UsageError):
    """A shape or dtype is not one that the operation accepts."""


class UnknownCodec(UsageError):
    """No codec of that name is registered."""


class BaseError(UsageError):
    """An array was packed as its difference from a base, and that is missing, or another one was given."""


class NotFinite(TrimtabError, ArithmeticError):
    """Values are NaN or infinite where going on would spoil the training."""


class FormatError(TrimtabError, ValueError):
    """The bytes are not a packed file that this version can read."""


class Corrupt(FormatError):
    """The bytes contradict themselves: a wrong length, table, offset or checksum."""


class Truncated(FormatError):
    """The bytes end too early."""


class NewerVersion(FormatError):
    """The file was written by a newer version of the format."""


class BackendUnavailable(TrimtabError, RuntimeError):
    """The kernel back end that was asked for cannot run here."""


class NetlabUnavailable(TrimtabError, RuntimeError):
    """This machine does not allow what a laboratory of slow links needs; the message says what, and what would help."""


class CommandFailed(TrimtabError, RuntimeError):
    """A command that ran on the nodes of a netlab failed; the message has its last lines."""


class NoFeasibleChoice(TrimtabError, RuntimeError):
    """No setting satisfies the constraint; the message names the nearest candidates, and `nearest` holds them."""

    def __init__(self, message: str, nearest: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)
        """Choices (`trimtab.tune.Choice`), the nearest first."""


class BoundViolated(TrimtabError, RuntimeError):
    """A codec could not keep its promise. This is a bug of trimtab: please report it."""


class CommError(TrimtabError, RuntimeError):
    """A compressed collective failed. Its process groups are out of step: start again from the last checkpoint."""


class PayloadError(CommError):
    """A received payload has a wrong size, header or checksum; the message names its sender."""


class PeerFailed(CommError):
    """Another rank died, timed out, or reported its own failure, which the message repeats."""


class SettingsDiffer(CommError):
    """The ranks were set up differently."""
