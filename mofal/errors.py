"""One exception class per kind of mistake. The command line turns each into one message."""

from __future__ import annotations


class MofalError(Exception):
    """Base of every error that mofal raises on purpose.

    A message says what was found, what was expected, and the line to type.
    """


class ConfigError(MofalError, ValueError):
    """A campaign file, or an option of a command, that cannot be meant."""


class StructureError(MofalError, ValueError):
    """A structure that cannot be what its file says (missing hydrogens, NaN, overlapping atoms)."""


class DataError(MofalError, ValueError):
    """A Dataset that breaks the data contract."""


class StoreError(MofalError):
    """A group on disk that is damaged, incomplete, or of a format that this version cannot read."""


class ReferenceError(MofalError):
    """A reference method that cannot be set up (a failed calculation is a status instead)."""


class PotentialError(MofalError):
    """A potential that cannot be used as asked (an element it has no type for, a foreign file)."""


class DependencyError(MofalError, ImportError):
    """A package that this command needs is not installed."""


class ScheduleError(MofalError):
    """Workers that cannot be had: a pool that dies on arrival, a scheduler that is gone."""


class CampaignError(MofalError):
    """A campaign directory that cannot be continued (another campaign's, or one in use)."""
