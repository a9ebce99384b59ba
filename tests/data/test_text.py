import pytest
import torch

from fastnas.data import Windows, read_corpus, streams, window
from fastnas.errors import FastnasError

TEXTS = {"train": " a b a \n\n c \n", "valid": " b c \n", "test": " a \n"}


@pytest.fixture
def folder(tmp_path):
    for part, text in TEXTS.items():
        (tmp_path / f"ptb.{part}.txt").write_text(text)
    return tmp_path


def test_a_corpus(folder):
    corpus = read_corpus("ptb", folder)
    assert corpus.words == ("a", "b", "<eos>", "c")
    assert corpus.train.tolist() == [0, 1, 0, 2, 2, 3, 2]
    assert (corpus.valid.tolist(), corpus.test.tolist()) == ([1, 3, 2], [0, 2])
    for part in TEXTS:
        (folder / f"ptb.{part}.txt").rename(folder / f"{part}.txt")
    assert read_corpus("ptb", folder).train.equal(corpus.train)


def test_windows_are_the_text_once_in_order():
    text = streams(torch.arange(23), 2)
    assert text.T.tolist() == [list(range(11)), list(range(11, 22))]
    whole = list(Windows(text, 4, drop_last=False))
    assert [len(words) for words, _ in whole] == [4, 4, 2]
    assert len(Windows(text, 4)) == len(list(Windows(text, 4))) == 2
    assert torch.cat([words for words, _ in whole]).equal(text[:-1])
    assert torch.cat([targets for _, targets in whole]).view(-1, 2).equal(text[1:])
    again = Windows(text, 4).forever()
    assert [next(again)[0][0, 0].item() for _ in range(4)] == [0, 4, 0, 4]
    assert window(text, 9, 4)[1].tolist() == [10, 21]


def test_mistakes(folder):
    with pytest.raises(FastnasError, match="give their folder with --data"):
        read_corpus("ptb", None)
    with pytest.raises(FastnasError, match="is no folder"):
        read_corpus("ptb", folder / "ptb.test.txt")
    (folder / "ptb.valid.txt").write_text("a d\n")
    with pytest.raises(
        FastnasError, match=r"ptb.valid.txt has the word 'd', which the training text has not"
    ):
        read_corpus("ptb", folder)
    (folder / "ptb.valid.txt").write_text("")
    with pytest.raises(FastnasError, match=r"ptb.valid.txt is empty"):
        read_corpus("ptb", folder)
    (folder / "ptb.valid.txt").write_bytes(b"\xff")
    with pytest.raises(FastnasError, match="cannot be read as text"):
        read_corpus("ptb", folder)
    (folder / "ptb.valid.txt").unlink()
    with pytest.raises(FastnasError, match=r"neither ptb.valid.txt nor valid.txt"):
        read_corpus("ptb", folder)
    with pytest.raises(FastnasError, match="--batch-size 4 leaves no two words"):
        streams(torch.arange(7), 4)
    with pytest.raises(FastnasError, match="--bptt 3 is more than the 2 words"):
        Windows(streams(torch.arange(7), 2), 3)
