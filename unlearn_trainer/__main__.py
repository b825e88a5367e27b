"""``python -m unlearn_trainer`` is the command ``unlearn-trainer``."""

from .early_stop import end_on_ctrl_c

end_on_ctrl_c()

from .cli import main  # noqa: E402

main()
