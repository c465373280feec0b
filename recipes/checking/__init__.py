"""Checks a dataset before it is used: what is wrong, in which file, and what to do about it."""
