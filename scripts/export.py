"""A dataset for somebody else's training job: `python -m scripts.export outputs/verdict --to nanogpt`."""

from pipeline.__main__ import tools

if __name__ == "__main__":
    tools("export")
