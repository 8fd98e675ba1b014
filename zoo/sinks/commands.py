"""The verb ``zoo sinks``: the sinks of a saved language model on a text."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.events import display_path
from zoo.hf.config import saved_config
from zoo.io import atomic_write
from zoo.sinks.analysis import analyze
from zoo.sinks.figures import save_figure
from zoo.sinks.report import SCALARS


def sinks(
    model_dir: str,
    text: str = "",
    tokens: int = 1024,
    chat: bool = False,
    queries: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    output: str | None = None,
    rows: int = 20,
) -> str:
    """Attention sinks of a language model on a text: which tokens, in which layers, made by what.

    Args:
        model_dir: Folder of a model of transformers, with safetensors and its tokenizer.
        text: File of text (UTF-8). Its beginning is read, with the special tokens of the model's tokenizer.
        tokens: How many tokens of it.
        chat: Put the text into the tokenizer's chat template, as the user's message.
        queries: Rows of attention that are looked at, drawn evenly; all if not given, which is exact.
        dtype: Number format of the weights; auto is that of the file.
        output: Folder for sinks.json and sinks.png; the current folder's sinks-NAME if not given.
        rows: Sinks in the table, at most.

    Returns:
        The text of the report.

    Raises:
        ValueError: a folder that is no model, a file that is no text, or a text of too few tokens.
    """
    if not text:
        raise ValueError("text: which file is the model to read? Give --text FILE")
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model_dir={model_dir!r} is not the folder of a model: no config.json is in it")
    content = _read(Path(text))
    tokenizer = _tokenizer(folder)
    config = saved_config(model_dir, None)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(f"tokens={tokens} is more than the model's max_position_embeddings={limit}")
    ids = _encode(tokenizer, content, tokens, chat, text)
    network = _load(model_dir, _dtype(config, dtype))
    report = analyze(network, ids, texts=tokenizer.convert_ids_to_tokens, queries=queries)
    out = Path(f"sinks-{folder.resolve().name}" if output is None else output)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "sinks.json", report.to_json() + "\n")
    save_figure(
        out / "sinks.png", report, f"{folder.resolve().name}: {ids.shape[1]:,} tokens of {Path(text).name}"
    )
    numbers = "\n".join(
        f"{value:12.5g}  {SCALARS[name]}" for name, value in report.scalars.items() if value == value
    )
    levels = ", ".join(f"({start}, {life}): {count}" for (start, life), count in report.levels.items())
    lines = [report.table(rows), "", numbers, ""]
    lines += [f"levels (first layer, lifetime): {levels}"] if levels else []
    return "\n".join([*lines, f"{display_path(out / 'sinks.json')}, {display_path(out / 'sinks.png')}"])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text={str(path)!r} is not text: byte {error.start} is not of UTF-8") from error
    except OSError as error:
        raise ValueError(f"text={str(path)!r} cannot be read: {error.strerror}") from error


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model_dir={str(folder)!r} has no tokenizer that can be read: {error}") from error


def _encode(tokenizer: Any, content: str, count: int, chat: bool, text: str) -> Tensor:
    if chat and not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat: the model's tokenizer has no chat template; leave --chat out")
    # A token is rarely longer than 32 characters: the rest of a long file is not tokenized for nothing.
    content = content[: 64 * count]
    if chat:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": content}], return_dict=False)
    else:
        ids = tokenizer(content, verbose=False)["input_ids"]  # the length is checked here
    if len(ids) < count:
        raise ValueError(
            f"text={text!r} has {len(ids)} tokens, fewer than tokens={count}: give --tokens {len(ids)}"
        )
    return torch.tensor([ids[:count]])


def _load(model_dir: str, kind: torch.dtype) -> Any:
    from transformers.utils import logging

    from zoo.hf.network import UnsupportedAttention, load_network

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return load_network(model_dir, attention="sdpa", dtype=kind).eval()
    except UnsupportedAttention:
        return load_network(
            model_dir, attention="eager", dtype=kind
        ).eval()  # Gemma 2 and gpt-oss have no other


def _dtype(config: Any, dtype: str) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    return getattr(config, "dtype", None) or torch.float32
