"""Assembles and runs one open queue in one process."""
