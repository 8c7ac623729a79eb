"""Mounts that a module's tests share."""

from core.conftest import variant

__all__ = ["variant"]
