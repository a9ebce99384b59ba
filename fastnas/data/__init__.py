"""Data sets, their two halves, and batches that are augmented on the device where the images lie.

```
load_dataset -> Dataset -> split -> channel_statistics -> Batches
```

```
read_corpus -> Corpus -> streams -> Windows
```

Images stay uint8 until they are in a batch, and nothing that is read from a file can run code.
"""

from fastnas.data.augment import Augment, default_augment
from fastnas.data.batches import Batches, channel_statistics
from fastnas.data.dataset import Dataset, split
from fastnas.data.folder import read_image
from fastnas.data.load import DATASETS, load_dataset
from fastnas.data.shard import WHOLE, Shard
from fastnas.data.text import CORPORA, Corpus, Windows, read_corpus, streams, window

__all__ = [
    "CORPORA",
    "DATASETS",
    "WHOLE",
    "Augment",
    "Batches",
    "Corpus",
    "Dataset",
    "Shard",
    "Windows",
    "channel_statistics",
    "default_augment",
    "load_dataset",
    "read_corpus",
    "read_image",
    "split",
    "streams",
    "window",
]
