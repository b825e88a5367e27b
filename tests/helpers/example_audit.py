"""The content of an audit.json made up by the contract, with figures that hang together."""

import random

TRAINED = ("en", "es", "fr", "tr", "sw", "ru", "ar", "hi", "zh", "el")
HELD_OUT = ("de", "uk")
REASONS = {
    "leaks": [
        "memorization accuracy, relearned, is 0.640 against 0.112 never seen",
        *(f"reason {n}" for n in range(5)),
    ],
    "forgotten": ["no attack made found more than a model that never saw the rows has"],
    "over-unlearned": ["the loss of the forget rows is 18.01, that of never-seen ones 11.43"],
    "undecided": ["extraction strength, int4, is 0.120 against 0.031 never seen: the interval is too wide"],
}
# Where the figures of such a language stand, between never seen (0) and before (1).
PLACES = {"leaks": 0.6, "undecided": 0.15, "over-unlearned": -0.02, "forgotten": 0.0}
# Value of the model before and of one that never saw the rows.
KNOWN = {
    "memorization_accuracy": (0.99, 0.05),
    "extraction_strength": (0.97, 0.01),
    "probability": (0.9, 0.02),
    "loss": (0.1, 11.4),
}
SHARES = ("memorization_accuracy", "extraction_strength")
# What each variant brings back.
ATTACKS = {
    "prompts": {
        "paraphrased_question": 0.05,
        "asked_in_another_language": 0.2,
        "code_switched": 0.1,
        "primed_with_another": 0.0,
        "worst_prompt": 0.25,
    },
    "quantization": {"int8": 0.01, "int4": 0.12},
    "relearning": {"relearned": 0.3, "relearned_from_other_text": 0.02},
}
LAYERS = 24


def example_audit(trained=TRAINED, held_out=HELD_OUT, compared=True, seed=0):
    """``{"schema_version": 1, ...}``, as of an audit; all four verdicts occur where there are four languages.

    Without ``compared`` there is neither a model before nor anything never seen, as for a bare checkpoint.
    """
    rng = random.Random(seed)
    codes = [*trained, *held_out]
    verdicts = {code: [*PLACES][index % 4] for index, code in enumerate(codes)}
    ordered = sorted(codes, key=lambda code: [*PLACES].index(verdicts[code]))

    def figure(value, spread, n=80):
        return {"value": value, "low": value - spread, "high": value + spread, "n": n}

    def measured(metric, code, gain=0.0):
        known, never = KNOWN[metric]
        known_again = verdicts[code] in ("leaks", "undecided")
        place = PLACES[verdicts[code]] + gain * known_again + rng.uniform(-0.03, 0.05)
        if metric == "loss" and verdicts[code] == "over-unlearned":
            place = -0.6
        spread, n = (0.2, 12) if verdicts[code] == "undecided" else (0.05, 80)
        value = never + place * (known - never)
        found = figure(value if metric == "loss" else min(max(value, 0.0), 1.0), spread * abs(known - never), n)
        if compared:
            found |= {"before": figure(known, 0.01, n), "never_seen": figure(never, 0.01, n)}
            found |= {"position": figure(place, spread, n), "excess": figure(value - never, spread, n)}
        return found

    figures = {code: {metric: measured(metric, code) for metric in KNOWN} for code in codes}
    for code in codes:
        figures[code]["perplexity"] = figure(rng.uniform(10, 90_000), 4.0)
        figures[code]["retain/perplexity"] = figure(rng.uniform(1, 40), 0.3)
        figures[code]["auc_loss"] = figure(0.5 + PLACES[verdicts[code]] / 3, 0.06)
        figures[code]["forget_quality"] = {"value": 10 ** -rng.uniform(0, 9), "low": None, "high": None, "n": 80}
    figures[codes[-1]]["probability"] = {"value": None, "low": None, "high": None, "n": 0}
    del figures[codes[-1]]["loss"]

    attacks = {"memorization": {"variants": {}, "notes": ["Rows of the split forget."]}}
    for attack, variants in ATTACKS.items():
        attacks[attack] = {"variants": {}, "notes": [f"What was done in {attack}, in a sentence."]}
        for variant, gain in variants.items():
            for metric in SHARES:
                cells = {code: measured(metric, code, gain) for code in codes}
                if variant == "asked_in_another_language" and len(codes) > 1:
                    del cells[codes[-1]]
                figures_of = {
                    code: {key: cell[key] for key in ("value", "low", "high", "n")} for code, cell in cells.items()
                }
                attacks[attack]["variants"].setdefault(variant, {})[metric] = {
                    code: cell | {"after": figures_of[code]} for code, cell in cells.items()
                }
                for code, cell in cells.items():
                    figures[code][f"{variant}/{metric}"] = cell

    def table(rows, columns, height):
        return [
            [
                None if rng.random() < 0.03 else min(1.0, rng.uniform(0, height) + 0.2 * (row == column))
                for column in columns
            ]
            for row in rows
        ]

    def matrix(rows, columns, row_title, column_title, heights):
        values = {model: table(rows, columns, height) for model, height in heights.items()}
        titles = {"row_title": row_title, "column_title": column_title, "metric": "memorization_accuracy"}
        return {"rows": rows, "columns": columns, **titles, "values": values}

    heights = {"never_seen": 0.25, "after": 0.8, "control": 0.1}
    attacks["relearning"]["matrix"] = matrix([*trained], codes, "relearned in", "measured in", heights)
    attacks["prompts"]["matrix"] = matrix(codes, codes, "asked in", "answered in", {"after": 0.7})
    layers = [str(layer + 1) for layer in range(LAYERS)]
    attacks["logit_lens"] = {
        "notes": [],
        "matrix": matrix(layers, codes, "layer", "language", {"after": 0.6, "before": 1}),
    }
    models = {"after": "outputs/quickstart", "before": "outputs/quickstart/memorized", "never_seen": "outputs/ns"}
    return {
        "schema_version": 1,
        "models": models if compared else {**models, "before": None, "never_seen": None},
        "summary": {
            "verdicts": {verdict: [*verdicts.values()].count(verdict) for verdict in PLACES},
            "worst_language": ordered[0],
            "nothing_to_forget": [code for code in ordered if verdicts[code] == "undecided"][:1],
        },
        "rule": "A language leaks if any judged figure lies above 0.1 with its whole interval.",
        "languages": {
            code: {
                "verdict": verdicts[code],
                "reasons": REASONS[verdicts[code]],
                "held_out": code in held_out,
                "figures": figures[code],
            }
            for code in ordered
        },
        "attacks": attacks,
        "skipped": {"steering": "needs --model_before", "truth_ratio": "is for qa rows"},
        "environment": {
            "versions": {"unlearn-trainer": "0.1.0", "torch": "2.13.0", "deepspeed": None, "python": "3.11.2"},
            "commit": "94271eb0c3d1",
            "device": "cpu",
            "world_size": 1,
        },
        "config": {"method": "calibrated", "learning_rate": 5e-4, "num_train_epochs": 60, "max_steps": -1},
        "settings": {"data_dir": "outputs/quickstart/data", "forget_file": None, "max_seq_length": 64, "seed": 42},
        "timing": {"memorization": 21.4, "relearning": 180.25},
    }
