"""``python -m unlearn_trainer`` is the command ``unlearn-trainer``."""

from .early_stop import end_on_ctrl_c


def main() -> None:
    """Answer at once what needs no library, and run what does."""
    end_on_ctrl_c()

    from .config.early import answer_early  # both here, because they take their time

    answer_early()

    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
