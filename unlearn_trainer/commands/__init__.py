"""The commands beside a run, a module each; its ``main`` takes the words behind the command's name."""
