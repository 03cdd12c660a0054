"""What we measure ourselves against: one small script per tool, each run in an environment of its own.

A peer is written as its own documentation would have it, as fast as it goes on two cores, and appends the end
mark behind each document. The first lines of its file name what it needs (inline script metadata, PEP 723).
"""
