"""Reads and writes jobs in the store."""
