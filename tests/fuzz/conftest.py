"""Filters that are loaded without a mount."""

from loader.conftest import runner, shared, stock

__all__ = ["runner", "shared", "stock"]
