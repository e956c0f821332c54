"""Penstock: the metering gate between AI agents and inference."""

__version__ = "0.1.0"
