"""Per-row metrics, the same metrics as `evaluate` modules, and the files and tables that report them."""

from pathlib import Path


def module_path(name: str) -> str:
    """Folder of a module for ``evaluate.load``, which then needs no network.

    Names: extraction_strength, memorization_accuracy, perplexity, probing_accuracy. Raises ValueError for any other.
    """
    modules = Path(__file__).parent / "modules"
    names = sorted(path.stem for path in modules.glob("*/*.py"))
    if name not in names:
        raise ValueError(f"no evaluate module is named {name!r}; there are {', '.join(names)}")
    return str(modules / name)
