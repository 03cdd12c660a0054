"""A dataset for somebody else's training job: `python -m scripts.export outputs/verdict --to nanogpt`."""

from pipeline.tools import main

if __name__ == "__main__":
    main("export")
