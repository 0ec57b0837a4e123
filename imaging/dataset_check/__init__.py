"""What is in a data set and what is wrong with it, told before an hour is spent on training.

Invariant: every case is looked at once and every problem is told at once; what cannot be read takes part in no figure.
No text here names a patient. Imports no torch.
"""

from imaging.dataset_check.classes import ClassSurvey, survey_classes
from imaging.dataset_check.masks import CaseFacts, Survey, is_mask, mismatches, survey, with_label
from imaging.dataset_check.telling import Note, OnCase

__all__ = [
    "CaseFacts",
    "ClassSurvey",
    "Note",
    "OnCase",
    "Survey",
    "is_mask",
    "mismatches",
    "survey",
    "survey_classes",
    "with_label",
]
