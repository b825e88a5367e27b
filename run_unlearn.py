#!/usr/bin/env python
"""Unlearn texts or facts from a multilingual language model: parse, load data, load model, train, evaluate, report.

python run_unlearn.py quickstart
accelerate launch run_unlearn.py my_run.json --learning_rate 1e-4
"""

if __name__ == "__main__":  # the libraries take seconds to load, in which Ctrl-C would be a traceback of theirs
    from unlearn_trainer.early_stop import end_on_ctrl_c

    end_on_ctrl_c()

    from unlearn_trainer.config.early import answer_early

    answer_early()

from unlearn_trainer.cli import main, run
from unlearn_trainer.runs.run import make_trainer
from unlearn_trainer.trainer import UnlearnTrainer

__all__ = ["UnlearnTrainer", "main", "make_trainer", "run"]

if __name__ == "__main__":
    main()
