"""The split of a text: what is held out, by content alone, and the check that training does not hold it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.datamodules._text_documents import paragraphs

SEPARATOR = "\n\n"  # between documents


@dataclass(frozen=True)
class Split:
    """The three parts of a text, each a list of texts that follow one another.

    Attributes:
        train: Documents, or what is left of the one document there is.
        val: Held out for validation; none if empty.
        test: Held out for test; none if empty.
    """

    train: list[str]
    val: list[str]
    test: list[str]


def content(piece: str) -> str:
    """What makes two pieces the same: sha256 of their words, whatever the white space between them."""
    return hashlib.sha256(" ".join(piece.split()).encode()).hexdigest()


def split_text(
    documents: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    val_documents: Sequence[str] | None = None,
    test_documents: Sequence[str] | None = None,
) -> Split:
    """Splits documents, or the paragraphs of a single one, into training, validation and test.

    Of many documents whole ones are held out, those whose content has the lowest sha256: the same in every
    run, and not in the order of the files. Of a single one it is its last paragraphs (test at the end,
    validation before it). Of equal documents the first stays, and no piece of training is a piece of what is
    held out: such paragraphs or documents are left out of training.

    Args:
        documents: What there is.
        val_fraction: Share of the characters to hold out for validation, where ``val_documents`` is None.
        test_fraction: The same for the test.
        val_documents: Validation that is given.
        test_documents: Test that is given.

    Raises:
        ValueError: the shares cannot be held out in whole pieces, or nothing is left to train on.
    """
    single = len(documents) == 1
    pieces = paragraphs(documents[0]) if single else _unique([f"{text}{SEPARATOR}" for text in documents])
    # White space is not counted, nor is it compared: which of two equal documents stays decides nothing.
    sizes = [len(" ".join(piece.split())) for piece in pieces]
    total = sum(sizes)
    places = list(range(len(pieces)))
    # Pieces are taken from the front of this order, for the test first.
    order = places[::-1] if single else sorted(places, key=lambda place: content(pieces[place]))
    taken: set[int] = set()
    held: dict[str, list[str]] = {}
    for name, fraction, given in (
        ("test", test_fraction, test_documents),
        ("val", val_fraction, val_documents),
    ):
        if given is not None:
            held[name] = [f"{text}{SEPARATOR}" for text in given] if len(given) > 1 else list(given)
            continue
        rest = [place for place in order if place not in taken]
        chosen = _take([(place, sizes[place]) for place in rest], fraction * total, single)
        if fraction > 0 and (not chosen or len(chosen) == len(rest)):
            kind = "paragraphs (parted by blank lines)" if single else "different documents"
            raise ValueError(
                f"{name}_fraction={fraction} cannot be held out in whole {kind}: the source has "
                f"{len(pieces)} of them with {total} characters in all. Change the fraction, give "
                f"{name}_source, or {name}_fraction=0"
            )
        taken |= set(chosen)
        held[name] = [pieces[place] for place in sorted(chosen)]
    kept_out = {content(piece) for name in ("test", "val") for piece in _finest(held[name], single)}
    train = [
        pieces[place] for place in places if place not in taken and content(pieces[place]) not in kept_out
    ]
    # In one text a paragraph of the validation may come back in the test: each measures its own text.
    if not train:
        raise ValueError(
            f"nothing is left to train on: all {len(pieces)} pieces of the source are held out, or equal to "
            "what is. Give another source, or hold out less"
        )
    parts = [train, held["val"], held["test"]]
    if single:  # again one text: what follows a paragraph may decide on its tokens
        parts = [["".join(part)] if part else [] for part in parts]
    return Split(*parts)


def _take(sizes: list[tuple[int, int]], wanted: float, single: bool) -> list[int]:
    """Places from the front until ``wanted`` characters; of documents those that still fit."""
    chosen: list[int] = []
    for place, size in sizes:
        if single and wanted <= 0:
            break
        if single or size <= wanted:
            chosen.append(place)
            wanted -= size
    return chosen


def _unique(pieces: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for piece in pieces:
        first.setdefault(content(piece), piece)
    return list(first.values())


def _finest(pieces: list[str], single: bool) -> list[str]:
    """Held-out pieces as the training's are: paragraphs, if those are, else documents."""
    return [paragraph for piece in pieces for paragraph in paragraphs(piece)] if single else pieces
