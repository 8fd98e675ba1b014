"""Where the text of `Text` comes from: documents of the Python library, of text files and of JSON lines."""

import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ENDINGS = (".txt", ".jsonl")
_PARAGRAPH = re.compile(r".+?(?:\n\s*\n|\Z)", re.DOTALL)  # with the blank lines behind it
_NOT_SOURCES = frozenset(["test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"])


def topics() -> list[str]:
    """The help texts of the Python language, in the order of their names: about 470 kB of English."""
    from pydoc_data.topics import topics as texts

    return [texts[name] for name in sorted(texts)]


def library_sources() -> list[str]:
    """The sources of the standard library without its tests, in the order of their paths: about 12 MB.

    They are those of the Python that runs; another version has others.

    Raises:
        ValueError: this Python came without them.
    """
    top = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, below, names in os.walk(top):
        below[:] = [name for name in below if name not in _NOT_SOURCES]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    # What the build wrote about its machine is not part of the library's text.
    files = [file for file in files if not file.name.startswith("_sysconfigdata")]
    if not files:
        raise ValueError(
            f"source='stdlib': {top} has no .py files; this Python came without its sources. Use another "
            "Python, or source='pydoc_topics'"
        )
    return [read_text(file) for file in sorted(files, key=lambda file: file.relative_to(top).as_posix())]


def read_documents(path: Path, argument: str, text_field: str) -> list[str]:
    """The documents of a file or folder: each .txt file is one, each line of a .jsonl file is one.

    Args:
        path: A file, or a folder whose files are read in the order of their paths.
        argument: The argument that named it, for messages.
        text_field: The field of a JSON line that holds the text.

    Raises:
        ValueError: the file does not exist, or it holds no text, or not what its ending says.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in ENDINGS and file.is_file())
        if not files:
            raise ValueError(f"{argument}={str(path)!r} is a folder without .txt or .jsonl files")
    elif not path.is_file():
        raise ValueError(
            f"{argument}={str(path)!r}: no such file or folder; expected 'pydoc_topics', 'stdlib', or the "
            "path of a .txt or .jsonl file, of a folder of them, or of a .bin file of tokens"
        )
    elif path.suffix not in ENDINGS:
        raise ValueError(
            f"{argument}={str(path)!r} ends in {path.suffix!r}: expected .txt, .jsonl (one document per "
            "line) or .bin (tokens)"
        )
    documents: list[str] = []
    for file in files:
        if file.suffix == ".txt":
            documents.append(read_text(file))
        else:
            documents += _json_lines(file, text_field)
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{argument}={str(path)!r} holds no text: every document in it is empty")
    return documents


def read_text(file: Path) -> str:
    """A text file as it stands, line ends included.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Convert it, for "
            "example with iconv -t UTF-8"
        ) from error


def _json_lines(file: Path, text_field: str) -> Iterator[str]:
    # Lines end in "\n" alone: JSON strings may hold the other characters that splitlines() splits at.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number} is not JSON: {error}; expected one object per line with the field "
                f"{text_field!r}"
            ) from error
        if not isinstance(record, dict) or text_field not in record:
            found = f"the fields {sorted(record)}" if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"{file}, line {number} has {found}, but no field {text_field!r}: name the one that holds "
                "the text with text_field"
            )
        if not isinstance(record[text_field], str):
            raise ValueError(
                f"{file}, line {number}: the field {text_field!r} is {type(record[text_field]).__name__}, "
                "expected a string"
            )
        try:
            record[text_field].encode()
        except UnicodeEncodeError as error:  # JSON can write half a character: "\\ud800"
            raise ValueError(
                f"{file}, line {number}: the field {text_field!r} is not Unicode text: {error}"
            ) from error
        yield record[text_field]


def paragraphs(text: str) -> list[str]:
    r"""A text in pieces that end in blank lines; joined they are the text.

    >>> paragraphs("One.\nOne.\n\nTwo.\n \n\nThree.")
    ['One.\nOne.\n\n', 'Two.\n \n\n', 'Three.']
    """
    return _PARAGRAPH.findall(text)
