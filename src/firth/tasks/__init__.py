"""Tasks: frozen dataclasses that read labelled files and turn scores into answers."""

from firth.tasks.classification import Classification

TASKS = {
    "classification": Classification,
}
"""The tasks by the name that they have on the command line."""
