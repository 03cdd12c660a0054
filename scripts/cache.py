"""What the cache holds: `python -m scripts.cache ls | why | gc --max-size 10GB | verify`."""

from pipeline.tools import main

if __name__ == "__main__":
    main("cache")
