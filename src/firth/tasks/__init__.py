"""Tasks: frozen dataclasses that read labelled files and turn scores into answers."""

from firth.tasks.classification import Classification
from firth.tasks.tagging import Tagging

TASKS = {
    "classification": Classification,
    "tagging": Tagging,
}
"""The tasks by the name that they have on the command line."""

__all__ = ["TASKS", "Classification", "Tagging"]
