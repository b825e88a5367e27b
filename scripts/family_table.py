"""Writes docs/families.md from the outcome of the sweep over all families:

pytest -m sweep --junitxml sweep.xml; python scripts/family_table.py sweep.xml > docs/families.md
"""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main(path: str) -> None:
    from helpers.families import FAMILIES, LEFT_OUT, NOT_CAUSAL, ONLY_FLOAT32

    outcomes: dict[str, dict[str, tuple[str, dict[str, str]]]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        if "family" not in properties:
            continue
        status = "failed" if case.find("failure") is not None or case.find("error") is not None else "yes"
        status = "left out" if case.find("skipped") is not None else status
        column = properties.get("dtype", "adapter")
        outcomes.setdefault(properties["family"], {})[column] = status, properties
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    print("# Families\n")
    print(
        f"Every causal family of transformers {transformers.__version__} as a tiny model of random weights, at commit "
        f"{commit.stdout.strip()} under torch {torch.__version__}: loss and gradient, packed rows, continuations, "
        "candidates, logit lens, steering, and saved and loaded models against plain forwards over one row at a time. "
        "Written by `scripts/family_table.py` from `pytest -m sweep`.\n"
    )
    print(
        "| family | float32 | bfloat16 | default adapter | rows share lines | continued | `generate` | "
        "longest row (of 128) | logit lens, steering |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for family in (each for each in FAMILIES if each in outcomes and each not in LEFT_OUT):
        found = outcomes[family]
        properties = found.get("float32", ("", {}))[1]
        columns = [found[name][0] if name in found else "not run" for name in ("float32", "bfloat16", "adapter")]
        shared = {"True": "yes", "False": "no"}.get(properties.get("packed", ""), "")
        columns += [shared, _way(properties), properties.get("generate", "")]
        columns += [_longest(properties), _attacks(properties)]
        print(f"| {family} | {' | '.join(columns)} |")
    print("\nPredictions that see what stands behind them, and are refused: " + ", ".join(sorted(NOT_CAUSAL)) + ".")
    print("\nLeft out in bfloat16, in which their own forward does not run: " + ", ".join(sorted(ONLY_FLOAT32)) + ".")
    print("\nNot made tiny, or not in the sweep:\n")
    for family, reason in sorted(LEFT_OUT.items()):
        print(f"- {family}: {reason}")


def _way(properties):
    if "cached" not in properties:
        return ""
    cached = "with a cache" if properties["cached"] == "True" else "without a cache"
    return f"{cached}, {'padded' if properties['padded'] == 'True' else 'rows of one length'}"


def _attacks(properties):
    """Which of the attacks on states can be made; one that cannot is withheld, and the verdict says so."""
    found = [name for key, name in (("lens", "lens"), ("steering", "steering")) if properties.get(key) == "yes"]
    return (", ".join(found) or "neither") if "lens" in properties else ""


def _longest(properties):
    return "no limit" if properties.get("longest") == "None" else properties.get("longest", "")


if __name__ == "__main__":
    main(*sys.argv[1:])
