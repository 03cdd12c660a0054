"""A dataset to the Hugging Face Hub: `python -m scripts.push outputs/verdict user/name`."""

from pipeline.__main__ import tools

if __name__ == "__main__":
    tools("push")
