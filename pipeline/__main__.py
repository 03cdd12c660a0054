"""Hydra's door: `python -m pipeline`. Everything else is in `pipeline.cli`, where worker processes can find it."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
