"""A text of which much can be learnt, for tests: each word says what comes next."""

import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(12)]


def write_corpus(folder: Path) -> Path:
    """``folder`` with train.txt, valid.txt and test.txt, a few hundred words."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    for part, lines in (("train", 40), ("valid", 12), ("test", 8)):
        text = [" ".join(WORDS)] if part == "train" else []
        for _ in range(lines):
            begin = draw.randrange(12)
            text.append(" ".join(WORDS[(begin + 5 * i) % 12] for i in range(draw.randrange(3, 8))))
        (folder / f"{part}.txt").write_text("".join(f" {line} \n" for line in text))
    return folder
