"""The process of a download: reads what to fetch from standard input, fetches it, and says on standard output where it lies.

The only room that imports huggingface_hub, which honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from streamserve.checkpoint.download import ModelFiles, Outcome, TokenizerFiles
from streamserve.checkpoint.files import INDEX, OTHER_WEIGHTS, read_json, refuse_pickles, weight_files
from streamserve.checkpoint.text_part import has_other_parts
from streamserve.errors import ConfigError

CONFIG_PATTERNS = ["*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges*"]
FOLDER_PATTERNS = ["additional_chat_templates/*.jinja", "*_Pooling/config.json"]
IGNORED_PATTERNS = ["*/*", *OTHER_WEIGHTS]
WEIGHT_PATTERNS = ["*.safetensors"]


def main() -> None:
    """Fetch what the first line on standard input names; ends at once when the process that wrote it does."""
    # A terminal sends Ctrl-C to this process too: the other one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files = msgspec.json.decode(sys.stdin.buffer.readline(), type=ModelFiles | TokenizerFiles)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answer:
        # What libraries print is no answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer.write(msgspec.json.encode(_fetch(files)))


def _end_with_parent() -> None:
    # The descriptor itself: a thread in a read of `sys.stdin` would hold its lock when the interpreter ends.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _fetch(files: ModelFiles | TokenizerFiles) -> Outcome:
    try:
        if isinstance(files, ModelFiles):
            return Outcome(folder=str(download_model(files)))
        return Outcome(folder=str(snapshot(files, files.patterns, ignored=[])))
    except ConfigError as error:
        return Outcome(problem=error.message)


def download_model(files: ModelFiles) -> Path:
    """The local snapshot of a model's repository. Raises `ConfigError`."""
    folder = snapshot(files, CONFIG_PATTERNS + (["*.py"] if files.trust_remote_code else []))
    snapshot(files, FOLDER_PATTERNS, ignored=[])
    if files.load_format != "dummy":
        text_only = has_other_parts(read_json(folder / "config.json") or {})
        indexed = [file.name for file in weight_files(folder, text_only=text_only)] if (folder / INDEX).is_file() else None
        folder = snapshot(files, indexed or WEIGHT_PATTERNS)
        if not weight_files(folder, text_only=text_only):
            refuse_pickles(files.repository, _files_on_the_hub(files.repository, files.revision))
    return folder


def snapshot(files: ModelFiles | TokenizerFiles, patterns: list[str], ignored: list[str] = IGNORED_PATTERNS) -> Path:
    """Download a repository's files that match `patterns` and none of `ignored`.

    Raises `ConfigError` with what to do when they can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    model = files.repository
    kept_in = None if files.download_dir is None else Path(files.download_dir).expanduser()
    try:
        found = snapshot_download(
            model, revision=files.revision, cache_dir=kept_in, allow_patterns=patterns, ignore_patterns=ignored
        )
        return Path(found)
    except GatedRepoError as error:
        raise ConfigError(f"{model}: gated on the Hub; accept its terms there and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        missing = f"{model}: no such folder here and no such repository on the Hub (private ones need HF_TOKEN)"
        raise ConfigError(missing) from error
    except LocalEntryNotFoundError as error:
        advice = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise ConfigError(f"{model}: not downloaded yet and the Hub can't be reached; {advice}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{model}: download failed: {reason}") from error


def _files_on_the_hub(model: str, revision: str | None) -> list[str]:
    """Names of a repository's files; empty when the Hub can't be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(model, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return []


if __name__ == "__main__":
    main()
