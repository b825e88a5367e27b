"""Data: rows from files or the Hub, checked across splits and tokenized."""

from .alternatives import add_alternatives, find_alternatives, load_alternatives, with_alternatives
from .checks import check_splits
from .counterparts import add_counterparts
from .items import QA, Cloze, Item, Passage, Text, parse_line, read_jsonl
from .sources import load_splits
from .tokenize import TokenizedData, tokenize_splits

__all__ = [
    "QA",
    "Cloze",
    "Item",
    "Passage",
    "Text",
    "TokenizedData",
    "add_alternatives",
    "add_counterparts",
    "check_splits",
    "find_alternatives",
    "load_alternatives",
    "load_splits",
    "parse_line",
    "read_jsonl",
    "tokenize_splits",
    "with_alternatives",
]
