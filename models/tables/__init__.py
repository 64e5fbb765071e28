"""Rows and the only SQL. Importing this package registers every table with `Base.metadata`."""

from models.tables import adapter, api_key, checkpoint, claims, comparison, event, file, job
from models.tables.base import Base

__all__ = [
    "Base",
    "adapter",
    "api_key",
    "checkpoint",
    "claims",
    "comparison",
    "event",
    "file",
    "job",
]
