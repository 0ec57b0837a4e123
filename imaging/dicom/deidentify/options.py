"""What of the profile is chosen, and how that is declared in what comes of it.

Sources: PS3.15 section E.3 (the options), PS3.16 CID 7050 (their codes), PS3.3 C.12.1.1.1 and C.7.6.1 (the attributes
that declare them).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

METHOD = "imgpipe, PS3.15 Annex E Basic Profile"


@dataclass(frozen=True, slots=True)
class Options:
    """Which options of the Basic Profile are taken; without any everything goes that the profile takes away.

    Attributes
    ----------
    modified_dates
        Dates of a patient are moved by one number of days, so that what lies between them stays.
    clean_descriptors
        Descriptions keep the words of a list of radiology's own, and lose all others.
    patient_characteristics
        Age, sex, size, weight and the like stay.
    device_identity
        Serial numbers, station names and the like stay.
    unsure_pixels
        Take pictures of a kind that often has text burnt in and does not say that it has none. One that says it has is
        never taken.
    """

    modified_dates: bool = False
    clean_descriptors: bool = False
    patient_characteristics: bool = False
    device_identity: bool = False
    unsure_pixels: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the profile's table that are asked before the Basic Profile's own."""
        names = ("modified_dates", "clean_descriptors", "patient_characteristics", "device_identity")
        return tuple(name for name in names if getattr(self, name))


# PS3.16 CID 7050.
_CODES = {
    "modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device_identity": ("113109", "Retain Device Identity Option"),
}


def declare(dataset: Dataset, options: Options) -> None:
    """Say in a data set what was done to it."""
    chosen = [("113100", "Basic Application Confidentiality Profile")]
    chosen += [_CODES[name] for name in options.columns]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    dataset.DeidentificationMethodCodeSequence = [_item(*code) for code in chosen]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.modified_dates else "REMOVED"


def _item(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
