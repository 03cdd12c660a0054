"""A row of a finished dataset, as a person reads it: `python -m scripts.show outputs/verdict --row 3`."""

from pipeline.__main__ import tools

if __name__ == "__main__":
    tools("show")
