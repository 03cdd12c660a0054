"""What the cache holds: `python -m scripts.cache ls | why | gc --max-size 10GB | verify`."""

from pipeline.__main__ import tools

if __name__ == "__main__":
    tools("cache")
