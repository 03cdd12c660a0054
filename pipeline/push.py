"""A finished dataset to the Hugging Face Hub, as it is: its card, its data files, its manifest.

Every file is hashed before anything is sent. What the Hub has already is not sent again, so that a push that was cut
off goes on where it was and one that was made before changes nothing. `run.json`, which tells of this machine, stays here.
The token is that in the environment variable HF_TOKEN; it is in no argument and in no file.
"""

import os
import sys
from pathlib import Path

from pipeline import manifests
from pipeline.errors import ConfigError, ResourceError
from pipeline.exports import splits


def push(dataset: str | os.PathLike[str], repo: str, public: bool = False) -> str:
    """Push the dataset at a folder to the repository `user/name`; returns its address.

    A repository that is new is private unless `public`; one that exists stays as it is. Data files of an earlier push
    that this dataset does not have are deleted there. Raises ConfigError without HF_TOKEN or where the name cannot be,
    IntegrityError where the dataset is damaged, ResourceError where the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ConfigError("push: set the environment variable HF_TOKEN to a token that may write (hf.co/settings/tokens).")
    path = Path(os.path.abspath(dataset))
    opened = splits(path, verify="full").values()
    names = {"manifest.json", *(manifests.read(path / "manifest.json") or {"files": {}})["files"]}
    for split in opened:
        names |= {os.path.relpath(split.path / name, path) for name in ("manifest.json", *split.manifest["files"])}
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=token, library_name="pretraining-pipeline")
    try:
        url = api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="dataset",
            folder_path=path,
            allow_patterns=sorted(names),
            delete_patterns=["data-*.arrow", "*/data-*.arrow"],
            commit_message=f"{sum(map(len, opened)):,} rows",
        )
    except HFValidationError as error:
        raise ConfigError(f"push: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:  # of an upload; the Hub's own words are its cause
        raise _refused(repo, error.__cause__ or error) from error
    except OSError as error:
        raise _refused(repo, error) from error
    return str(url)


def _refused(repo: str, error: BaseException) -> ResourceError:
    """What the Hub, or the network on the way to it, said; what it has by now is not sent again."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    advice = {401: "HF_TOKEN is not valid", 403: "HF_TOKEN may not write there", 404: "there is no such user or organisation"}
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ResourceError(f"push to {repo!r} ended: {advice.get(status, words)}. Push again to go on where it was.")
