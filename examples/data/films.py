"""Sentences about films in English with what twenty people thought of them, out of vaderSentiment.

    python examples/data/films.py vaderSentiment-3.3.2.tar.gz rows

rows/films-value has the mean rating, from -4 to 4; rows/films has its sign, none where it is 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from packages import content, write


def main(archive: Path, folder: Path) -> None:
    """Write the sentences with their ratings, and with the signs of these."""
    found = content(archive, "hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt")
    rated: dict[str, float] = {}
    for line in found.decode().splitlines():
        _, rating, text = line.split("\t", 2)
        if text.strip():
            rated.setdefault(text.strip(), float(rating))
    write(
        folder / "films-value",
        ((text, {"text": text, "value": round(value, 4)}) for text, value in rated.items()),
    )
    signs = {
        text: "positive" if value > 0 else "negative" for text, value in rated.items() if value
    }
    write(folder / "films", ((text, {"text": text, "label": sign}) for text, sign in signs.items()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
