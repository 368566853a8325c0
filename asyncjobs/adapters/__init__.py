"""Thin translations between a web framework and `asyncjobs.http`, one module each."""
