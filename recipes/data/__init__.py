"""Adapters to other libraries that feed recipes."""
