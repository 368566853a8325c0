"""Assembles and tends one open queue in one process."""
