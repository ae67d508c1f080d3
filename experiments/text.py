"""Text as tasks: contexts of bytes from files, split by file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.base import Array, Key

# A single file is cut into documents of this size.
DOCUMENT_BYTES = 2**16
# By the hash of their content, 1 file in 20 is for testing and 1 for validation.
SHARES = {0: "test", 1: "validation"}


class Corpus(NamedTuple):
    """Documents by split, and what identifies them.

    Attributes:
      train: the documents of the meta-training.
      validation: those of the meta-validation.
      test: those of the test.
    """

    train: list[bytes]
    validation: list[bytes]
    test: list[bytes]

    def describe(self) -> dict[str, object]:
        """The number and the bytes of the documents by split, and their SHA-256."""
        digest = hashlib.sha256()
        for split in self:
            for each in split:
                digest.update(hashlib.sha256(each).digest())
        sizes = {name: [len(s), sum(map(len, s))] for name, s in self._asdict().items()}
        return {"documents_and_bytes": sizes, "sha256": digest.hexdigest()}


def read(path: str | None) -> Corpus:
    """Reads the files below a folder, the parts of one file or, by default, Python's sources.

    A file belongs to a split by the hash of its content, so that the same content is never in two
    of them, and that other files do not change its split.

    Raises:
      ValueError: if there are no documents for one of the splits.
      FileNotFoundError: if there is nothing at the path.
    """
    root = Path(path or sysconfig.get_path("stdlib"))
    if not root.exists():
        raise FileNotFoundError(f"there is no text at {root}.")
    if root.is_file():
        whole = root.read_bytes()
        documents = [whole[i : i + DOCUMENT_BYTES] for i in range(0, len(whole), DOCUMENT_BYTES)]
    else:
        # Third-party packages and tests differ from machine to machine.
        skipped = () if path else ("site-packages", "dist-packages", "test", "tests")
        pattern = "*" if path else "*.py"
        documents = [
            each.read_bytes()
            for each in sorted(root.rglob(pattern))
            if each.is_file() and not set(each.relative_to(root).parts) & {*skipped}
        ]
    corpus = Corpus([], [], [])
    for each in dict.fromkeys(documents):
        share = hashlib.sha256(each).digest()[0] % 20
        getattr(corpus, SHARES.get(share, "train")).append(each)
    if not all(corpus):
        raise ValueError(f"{root} has {len(documents)} documents, too few for three splits.")
    return corpus


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("text", "starts", "ends"),
    meta_fields=("chunk", "num_chunks"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Contexts:
    """Contexts of consecutive chunks from one document each, every one equally likely.

    The support has one row for each chunk, `[num_chunks, 2 * chunk + 1]`: the chunk before it,
    which is read but not predicted, and the chunk. The query is the whole context, `[bytes]`.

    Attributes:
      text: all documents, uint8 `[bytes]`.
      starts: the first byte of each document `[documents]`.
      ends: the cumulative number of contexts in the documents `[documents]`.
      chunk: bytes per chunk.
      num_chunks: chunks that are predicted.
    """

    text: Array
    starts: Array
    ends: Array
    chunk: int
    num_chunks: int

    @classmethod
    def of(cls, documents: list[bytes], chunk: int, num_chunks: int) -> Contexts:
        """The contexts of the documents that are long enough.

        Raises:
          ValueError: if none is.
        """
        length = (num_chunks + 1) * chunk + 1
        long = [each for each in documents if len(each) >= length]
        if not long:
            raise ValueError(f"no document has the {length:,} bytes of a context.")
        sizes = np.array([len(each) for each in long])
        text = np.frombuffer(b"".join(long), np.uint8)
        starts, ends = np.cumsum([0, *sizes[:-1]]), np.cumsum(sizes - length + 1)
        return cls(
            jnp.asarray(text),
            jnp.asarray(starts, jnp.int32),
            jnp.asarray(ends, jnp.int32),
            chunk,
            num_chunks,
        )

    def sample(self, rng: Key) -> metajax.Episode:
        place = jax.random.randint(rng, (), 0, self.ends[-1])
        document = jnp.searchsorted(self.ends, place, side="right")
        before = jnp.where(document > 0, self.ends[document - 1], 0)
        length = (self.num_chunks + 1) * self.chunk + 1
        start = self.starts[document] + place - before
        text = jax.lax.dynamic_slice_in_dim(self.text, start, length)
        return metajax.Episode(chunks(text, self.chunk), text)


def chunks(text: Array, chunk: int) -> Array:
    """Cuts a context `[bytes]` into rows `[num_chunks, 2 * chunk + 1]` that overlap by half."""
    firsts = jnp.arange(0, len(text) - 2 * chunk, chunk)
    return text[firsts[:, None] + jnp.arange(2 * chunk + 1)[None]]
