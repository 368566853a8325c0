"""Thin translations between web frameworks and `asyncjobs.http`, one module for each."""
