"""Whole runs, killed, failed, damaged and raced at every point there is: `python -m tests.faults`."""
