"""The doors: `python -m pipeline`, and the console scripts. Everything else is where worker processes can find it."""

from pipeline import calm


def main() -> None:
    """Hydra's door, see `cli.main`."""
    calm.begin()
    from pipeline.cli import main

    main()


def tools(group: str | None = None) -> None:
    """The door to the verbs beside the pipeline, see `tools.main`."""
    calm.begin()
    from pipeline.tools import main

    main(group)


if __name__ == "__main__":
    main()
