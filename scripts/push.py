"""A dataset to the Hugging Face Hub: `python -m scripts.push outputs/verdict user/name`."""

from pipeline.tools import main

if __name__ == "__main__":
    main("push")
