"""Sequences that begin alike, run through a model as one row: every shared beginning is computed once.

The candidates of a cloze row differ in a few tokens. As a prefix tree each distinct beginning is one node, which
attends to its ancestors and itself and has its depth as its position, so that the tokens behind it are predicted
exactly as in a row of their own.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch


class PrefixTree:
    """The prefix tree of some token sequences.

    Args:
        sequences: token ids of each; all begin with the same token.

    Attributes:
        tokens, parents, depths: [nodes] of each node, parents before children; node 0 is the root, its own parent.
        paths: for each sequence the nodes [length] that spell it.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]):
        self.tokens = [sequences[0][0]]
        self.parents, self.depths = [0], [0]
        self.paths: list[list[int]] = []
        children: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            if sequence[0] != self.tokens[0]:
                raise ValueError("sequences of one tree begin with the same token")
            node, path = 0, [0]
            for token in sequence[1:]:
                child = children.setdefault((node, token), len(self.tokens))
                if child == len(self.tokens):
                    self.tokens.append(token)
                    self.parents.append(node)
                    self.depths.append(self.depths[node] + 1)
                node = child
                path.append(node)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain, so that a plain causal mask would not do."""
        return self.depths[-1] != len(self) - 1

    def ancestors(self) -> np.ndarray:
        """bool [nodes, nodes]: what each node attends to."""
        found = np.eye(len(self), dtype=bool)
        for node in range(1, len(self)):
            found[node] |= found[self.parents[node]]
        return found


def split_by_size(sequences: Sequence[Sequence[int]], limit: int) -> Iterator[list[int]]:
    """Indices of consecutive sequences whose prefix tree has at most about ``limit`` nodes and one root."""
    group: list[int] = []
    size = 0
    for index, sequence in enumerate(sequences):
        # Neighbours share most: what a sequence adds is judged by the one before it.
        added = len(sequence)
        if group:
            added -= _common(sequences[group[-1]], sequence)
        if group and (size + added > limit or sequence[0] != sequences[group[0]][0]):
            yield group
            group, size, added = [], 0, len(sequence)
        group.append(index)
        size += added
    if group:
        yield group


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def collate_trees(trees: Sequence[PrefixTree], pad_token_id: int) -> dict[str, torch.Tensor]:
    """The forward's arguments for a batch of trees, padded to the largest.

    Returns:
        ``input_ids`` [rows, nodes], and where all trees are chains ``attention_mask`` [rows, nodes]; otherwise
        ``position_ids`` [rows, nodes] and ``seen`` [rows, nodes, nodes], which node attends to which.
    """
    rows, length = len(trees), max(len(tree) for tree in trees)
    ids = np.full((rows, length), pad_token_id, dtype=np.int64)
    for row, tree in enumerate(trees):
        ids[row, : len(tree)] = tree.tokens
    if not any(tree.branches for tree in trees):
        sizes = np.array([len(tree) for tree in trees])
        mask = torch.from_numpy((np.arange(length) < sizes[:, None]).astype(np.int64))
        return {"input_ids": torch.from_numpy(ids), "attention_mask": mask}
    positions = np.zeros((rows, length), dtype=np.int64)
    # Padding attends to itself: a row of the softmax with nothing in it would be NaN.
    seen = np.tile(np.eye(length, dtype=bool), (rows, 1, 1))
    for row, tree in enumerate(trees):
        n = len(tree)
        positions[row, :n] = tree.depths
        seen[row, :n, :n] = tree.ancestors()
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "seen": torch.from_numpy(seen),
    }
