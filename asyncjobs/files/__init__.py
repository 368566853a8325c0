"""Storages of the files that jobs save."""
