"""The measures of test sets: their titles, and the one by which jobs are compared. Both follow the task."""

from collections.abc import Container
from typing import NamedTuple

from scaling_fl.reporting.frames import Frames


class Outcome(NamedTuple):
    metric: str
    title: str
    heading: str  # of a narrow column


_OF_CHOICES = Outcome("validation.choice_accuracy", "test accuracy of choices", "accuracy")
_OF_LANGUAGE_MODELS = Outcome("validation.perplexity", "test perplexity", "perplexity")
_OF_CLASSIFIERS = Outcome("validation.accuracy", "test accuracy", "accuracy")


def of_job(metrics: Container[str]) -> Outcome:
    """The accuracy of choices if `metrics` has it, or else the perplexity, or else the accuracy."""
    return next((found for found in (_OF_CHOICES, _OF_LANGUAGE_MODELS) if found.metric in metrics), _OF_CLASSIFIERS)


def compared(frames: Frames) -> Outcome:
    """The outcome that all jobs have; jobs without any results have no say."""
    if _OF_CLASSIFIERS.metric not in frames.runs:
        return _OF_CLASSIFIERS
    measured = frames.runs.dropna(subset=[_OF_CLASSIFIERS.metric])
    return of_job(measured.dropna(axis="columns", how="any")) if len(measured) else _OF_CLASSIFIERS


def titles(metrics: Container[str]) -> dict[str, str]:
    """Metrics of the test set in the order of tables, with titles, for jobs that have `metrics`."""
    tokens = _OF_LANGUAGE_MODELS.metric in metrics  # a language model's accuracy is over tokens
    return {
        _OF_CHOICES.metric: _OF_CHOICES.title,
        _OF_CLASSIFIERS.metric: "test accuracy of tokens" if tokens else _OF_CLASSIFIERS.title,
        "validation.macro_f1": "test macro F1",
        "validation.loss": "test loss",
        _OF_LANGUAGE_MODELS.metric: _OF_LANGUAGE_MODELS.title,
        "validation.bits_per_byte": "test bits per byte",
    }
