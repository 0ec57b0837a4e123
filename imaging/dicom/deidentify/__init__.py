"""DICOM images without whose they are: PS3.15 Annex E, the Basic Profile with its options.

Invariant: nothing gets over that is not known to be harmless. The first pass builds a new data set from what the
profile and a list let through; the second, which shares nothing with it, looks for what the original says of people in
the bytes that would be written, and holds every attribute against a list of its own. A file is written only if both
agree.
"""

from imaging.dicom.deidentify.options import Options
from imaging.dicom.deidentify.pseudonyms import Crosswalk, Key, Pseudonyms, make_key, read_key
from imaging.dicom.deidentify.whole import Deidentified, deidentified

__all__ = ["Crosswalk", "Deidentified", "Key", "Options", "Pseudonyms", "deidentified", "make_key", "read_key"]
