"""Raw text to Arrow datasets of input and target tensors, every stage cached.

    load -> tokenize -> map to IDs -> sliding window -> embed

`python -m pipeline corpus=verdict` runs it; `open_dataset("outputs/verdict")` opens what came out.
"""

TYPE_CHECKING = False  # typing's own, without the time that its import takes
if TYPE_CHECKING:
    from pipeline.dataset import WindowDataset, open_dataset

__version__ = "0.1.0"
__all__ = ["WindowDataset", "open_dataset"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from pipeline import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
