"""What must not stand in a configuration, and what of it is never written down: code, secrets, the environment's values.

A text that came from the environment, `${oc.env:NAME}`, counts in keys as what it is, and is written down as it was given.
"""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ConfigError

SECRET_KEY = re.compile(r"(^|[_-])(token|auth|(api|access|private)[_-]?key)s?$|secret|passphrase|passw(or)?d|credential", re.I)
SECRET_VALUE = re.compile(
    r"hf_(?=\w*[A-Z0-9]|\w{16})[A-Za-z0-9]{8,}"  # Hugging Face; a folder called hf_datasets is none
    r"|(AKIA|ASIA)[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|(?<=://)[^/?#@\s]+(?=@)"  # AWS, GitHub, user:password in a URL
    r"|(?<=[?&])(?i:x-(amz|goog)-(signature|credential|security-token)|sig|signature|(access_?)?token|api_?key)=[^&#\s]+"
)
CODE_KEY = re.compile(r"^_(target|args|partial|recursive|convert)_$|^trust_remote_code$")
_hidden: dict[str, str] = {}  # texts that came from the environment, and how they were given


def check_name(part: str, dotted: str) -> None:
    """Raise ConfigError where a key that we do not know would name code, or hold a secret."""
    if CODE_KEY.search(part):
        raise ConfigError(code(dotted))
    if SECRET_KEY.search(part):
        raise ConfigError(secret(dotted))


def code(dotted: str) -> str:
    """What is said of a key that would name code."""
    return f"{dotted} is unsafe: configuration is data here and may not name code."


def secret(dotted: str) -> str:
    """What is said of a key or a value that looks like a secret."""
    return f"{dotted[:80]} looks like a secret: put it in the environment (HF_TOKEN), where nothing writes it down."


def hide(raw: Any, resolved: Any) -> None:
    """Learn which texts of a composed configuration come from the environment: what is written down shows how they were given.

    `raw` and `resolved` are the same tree, with interpolations as they were written and with their values.
    """
    pairs = list(_leaves(raw, resolved))
    while found := {new: old for old, new in pairs if new not in _hidden and "${" in old and _tells(old, new)}:
        _hidden.update(found)


def _leaves(raw: Any, resolved: Any) -> Iterator[tuple[str, str]]:
    """Each text of the first tree with what it has become, where that is text too."""
    if isinstance(raw, dict) and isinstance(resolved, dict):
        raw, resolved = list(raw.values()), list(resolved.values())
    if isinstance(raw, str) and isinstance(resolved, dict | list):
        for value in resolved.values() if isinstance(resolved, dict) else resolved:
            yield from _leaves(raw, value)
    elif isinstance(raw, list) and isinstance(resolved, list):
        for one, other in zip(raw, resolved, strict=True):
            yield from _leaves(one, other)
    elif isinstance(raw, str) and isinstance(resolved, str) and resolved:
        yield raw, resolved


def _tells(raw: str, resolved: str) -> bool:
    """Does a text hold a value of the environment, by itself or through another one that does?"""
    return "oc.env" in raw or any(value in resolved for value in _hidden)


def as_given(value: Any) -> Any:
    """The same value with every text that came from the environment as it was given, `${oc.env:NAME}`."""
    if isinstance(value, dict) and _hidden:
        return {key: as_given(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and _hidden:
        return [as_given(inner) for inner in value]
    return _hidden.get(value, value) if isinstance(value, str) else value


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    return SECRET_VALUE.sub("[redacted]", text)
