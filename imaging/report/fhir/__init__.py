"""A report -> FHIR: one Bundle that a server stores whole, read back and compared before anybody gets it.

`bundle.py` puts it together; `parts.py` has FHIR's data types, `study.py` what was looked at, `observations.py` what
was found, `check.py` the way back.
"""

from imaging.report.fhir.bundle import bundle_of, write_fhir
from imaging.report.fhir.parts import Page, Version

__all__ = ["Page", "Version", "bundle_of", "write_fhir"]
