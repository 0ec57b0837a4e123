"""One tree of named refusals: everything that imgpipe can refuse, and what the person who meets it should do.

An error says five things: a code that never changes, the object (a UID or a path), what was seen, what was expected and
what to do. The same code appears in the message, in the JSON and in the logs. No text here ever carries a patient's
name, id or birth date.

The three branches say whose turn it is: `InputRefused` (the data), `WrongUsage` (the command or the config) and
`InternalFault` (imgpipe itself).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class ImagingError(Exception):
    """Root of the tree.

    Parameters
    ----------
    subject
        What it is about: a path (then `path` holds it), or an entity with its UID such as ``series 1.2.840...``.
    seen
        What was met.
    expected, remedy
        What should have been met, and what to do now. Each class has its own words for both; a raise site gives
        better ones where it knows more.
    """

    code: ClassVar[str] = "imaging_error"
    expected: str = ""
    remedy: str = ""

    def __init__(
        self, subject: object, *, seen: object, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.subject = str(subject)
        self.path = subject if isinstance(subject, Path) else None
        self.seen = str(seen)
        self.expected = self.expected if expected is None else expected
        self.remedy = self.remedy if remedy is None else remedy
        super().__init__(f"{self.code}: {self.subject}: {self.seen}; {self.expected}. {self.remedy}")

    def as_dict(self) -> dict[str, str]:
        """The five parts, for JSON."""
        return {
            "code": self.code,
            "subject": self.subject,
            "seen": self.seen,
            "expected": self.expected,
            "remedy": self.remedy,
        }


class InputRefused(ImagingError):
    """Something of the input cannot be read rightly, and is left out rather than guessed."""


class WrongUsage(ImagingError):
    """The command line or a config asks for something that cannot be done."""


class InternalFault(ImagingError):
    """imgpipe produced something that failed its own check; nothing of it is delivered."""


# ---------------------------------------------------------------------------------------------------- files and folders


class NothingFound(InputRefused):
    """The path holds no study."""

    code = "nothing_found"
    expected = "at least one DICOM file (or a .nii/.nii.gz file) was expected"
    remedy = "Check the path"


class NotDicom(InputRefused):
    """The file is not a DICOM file with the preamble and meta header of PS3.10."""

    code = "not_dicom"
    expected = "a DICOM file ('DICM' at byte 128) was expected"
    remedy = "Remove the file from the study folder"


class UnreadableDicom(InputRefused):
    """The file begins as DICOM and cannot be parsed to its end."""

    code = "unreadable_dicom"
    expected = "a complete DICOM data set was expected"
    remedy = "Send the instance again from its source"


class TruncatedPixels(InputRefused):
    """The pixel data is shorter or longer than rows x columns x frames says."""

    code = "truncated_pixels"
    expected = "pixel data of the size that the header declares was expected"
    remedy = "Send the instance again from its source"


class UnsupportedTransferSyntax(InputRefused):
    """The way the data set is compressed has no decoder here, or (deflated) no bound on what it unpacks to."""

    code = "unsupported_transfer_syntax"
    expected = "a transfer syntax with an installed decoder was expected"
    remedy = "Convert the series to Explicit VR Little Endian, for instance with dcmtk's dcmdjpeg or gdcmconv --raw"


class UndecodablePixels(InputRefused):
    """The codec refuses the compressed pixels, crashed on them, or needed more time or memory than a frame may take."""

    code = "undecodable_pixels"
    expected = "compressed pixels that decode to the size that the header declares were expected"
    remedy = "Send the instance again from its source, if possible uncompressed"


class UnsupportedPixels(InputRefused):
    """A way of storing pixels that the standard allows and imgpipe does not read."""

    code = "unsupported_pixels"
    expected = "8, 16, 32 or 64 bits a sample were expected"
    remedy = "Convert the instance to 8 or 16 bits a sample"


class ArchiveRefused(InputRefused):
    """An archive, or a part of it, that is damaged, encrypted, or unpacks to more than a study may hold."""

    code = "archive_refused"
    expected = "a whole ZIP or TAR of files within the bounds was expected"
    remedy = "Unpack the archive yourself and give its folder"


class MissingAttribute(InputRefused):
    """An attribute without which the image has no meaning is missing or unreadable."""

    code = "missing_attribute"
    expected = "the attribute was expected to be present and well-formed"
    remedy = "Send the instance again from its source"


class InvalidUid(InputRefused):
    """A UID breaks PS3.5 section 9.1 (digits and dots, at most 64 characters) and cannot name anything safely."""

    code = "invalid_uid"
    expected = "digits separated by dots, at most 64 characters, were expected (PS3.5 section 9.1)"
    remedy = "Correct the UID at its source"


class MixedPatients(InputRefused):
    """One StudyInstanceUID comes with more than one PatientID; nobody can tell whose study it is."""

    code = "mixed_patients"
    expected = "one patient a study was expected"
    remedy = "Correct the PatientID or the StudyInstanceUID at the source"


class UnreadableNifti(InputRefused):
    """The file is not a NIfTI image that nibabel can read."""

    code = "unreadable_nifti"
    expected = "a NIfTI-1 or NIfTI-2 file (.nii, .nii.gz) was expected"
    remedy = "Write the file again"


class UnreadablePng(InputRefused):
    """The file is not a PNG picture, or is damaged."""

    code = "unreadable_png"
    expected = "a whole PNG file with one picture was expected"
    remedy = "Write the file again"


class PictureTooLarge(InputRefused):
    """A picture whose header declares more pixels than a film has: it would unpack to memory without bound."""

    code = "picture_too_large"
    expected = "at most 67 million pixels were expected"
    remedy = "Make the picture smaller, if it is what it says"


# ------------------------------------------------------------------------------------------------ what a series may be


class SeriesRefused(InputRefused):
    """A series that the reader cannot turn into a volume without guessing."""

    code = "series_refused"


class SetAside(SeriesRefused):
    """What a series holds beside pictures by design: listed and left aside, and no fault of anybody."""


class NotAnImage(SetAside):
    """The series holds objects without pixels: reports, dose records, presentation states."""

    code = "not_an_image"
    expected = "image instances were expected"
    remedy = "Nothing to do: the object is listed and left aside"


class Localizer(SetAside):
    """A localizer or scout: pictures to plan with, not a stack."""

    code = "localizer"
    expected = "parallel slices of one stack were expected"
    remedy = "Nothing to do: it is listed and left aside"


class SecondaryCapture(SetAside):
    """Secondary captures are screenshots; their pixels have no position in the patient."""

    code = "secondary_capture"
    expected = "images with a position in the patient were expected"
    remedy = "Nothing to do: it is listed and left aside"


class MultiFrame(SeriesRefused):
    """Several frames in one instance without a place for each: a cine loop, a mosaic, projections of a tomograph."""

    code = "multi_frame"
    expected = "one frame an instance, or functional groups that place each frame, were expected"
    remedy = "Convert it to single frames with positions, if it is a volume"


class ColourImage(SeriesRefused):
    """Pixels with three samples, or indices into a palette: they measure nothing."""

    code = "colour_image"
    expected = "one grey sample a pixel (MONOCHROME1 or MONOCHROME2) was expected"
    remedy = "Use the original grey series"


class InvertedGrey(SeriesRefused):
    """MONOCHROME1, where a larger value is darker; --policy repair inverts it."""

    code = "monochrome1"
    expected = "MONOCHROME2 was expected"
    remedy = "Read it with --policy repair, or convert the series to MONOCHROME2"


class InvalidGeometry(SeriesRefused):
    """Orientation, position or spacing that no scanner means: NaN, zero, not unit, not orthogonal."""

    code = "invalid_geometry"
    expected = "finite positions, positive spacing and orthogonal unit direction cosines were expected"
    remedy = "Correct the geometry at its source"


class TooFewSlices(SeriesRefused):
    """One slice has no distance to the next, so it is not a volume."""

    code = "too_few_slices"
    expected = "at least two slices at different positions were expected"
    remedy = "Send the whole series"


class DuplicateSlices(SeriesRefused):
    """Two slices lie at one position: a repeated file, or a series with several phases, echoes or b-values."""

    code = "duplicate_slices"
    expected = "one slice a position was expected"
    remedy = "Send one phase, echo or acquisition a series, each file once"


class MissingSlices(SeriesRefused):
    """The distance between two neighbours is a multiple of the spacing."""

    code = "missing_slices"
    expected = "the same distance between all slices was expected"
    remedy = "Send the series again, with every slice; --policy repair reads its longest whole part"


class VariableSpacing(SeriesRefused):
    """The distances between neighbours differ."""

    code = "variable_spacing"
    expected = "the same distance between all slices was expected"
    remedy = "Read it with --policy repair, which resamples it, or reconstruct it with even slices"


class GantryTilt(SeriesRefused):
    """The slices do not lie above each other along their normal."""

    code = "gantry_tilt"
    expected = "slices stacked along their own normal were expected"
    remedy = "Read it with --policy repair, which resamples it, or reconstruct it without tilt"


class UnsupportedNifti(SeriesRefused):
    """A NIfTI image that is not one 3D volume of real numbers with an invertible affine."""

    code = "unsupported_nifti"
    expected = "one 3D volume of finite real numbers with an invertible affine in millimetres was expected"
    remedy = "Extract one volume and write it again with its qform or sform"


class NotFinite(SeriesRefused):
    """NaN or infinite voxels."""

    code = "not_finite"
    expected = "finite voxel values were expected"
    remedy = "Replace the NaN or infinite voxels at their source"


class ConstantImage(SeriesRefused):
    """All voxels are equal: there is nothing to normalise or to see."""

    code = "constant_image"
    expected = "an image with more than one value was expected"
    remedy = "Check the series at its source"


class LooksLikeMask(SeriesRefused):
    """A few whole numbers and nothing else: a label map, not a picture."""

    code = "looks_like_mask"
    expected = "a picture with more values was expected"
    remedy = "Give the image that the mask belongs to"


class SharedInstanceUid(SeriesRefused):
    """Slices that share a SOPInstanceUID: no result could say which of them it means."""

    code = "shared_instance_uid"
    expected = "a SOPInstanceUID of its own for each instance was expected"
    remedy = "Send each instance once, with its own UID"


class NotApplicable(SeriesRefused):
    """No checkpoint, or not the one asked for, takes this series."""

    code = "not_applicable"
    expected = "a series within the checkpoint's applies_to rule was expected"
    remedy = "Name a checkpoint made for such a series with --model, or see `imgpipe models`"


# --------------------------------------------------------------------------------------------------------- checkpoints


class CheckpointCorrupt(InputRefused):
    """A file of the checkpoint differs from its checksum, or is missing."""

    code = "checkpoint_corrupt"
    expected = "every file as SHA256SUMS lists it was expected"
    remedy = "Fetch the checkpoint again"


class UnknownCheckpoint(WrongUsage):
    """No checkpoint of this name is shipped, and no folder of this path exists."""

    code = "unknown_checkpoint"
    remedy = "Choose one of the known ones, or give the path of a checkpoint folder"


class WrongTask(WrongUsage):
    """A checkpoint was asked for what another task does: masks of a classifier, or a class of a segmenter."""

    code = "wrong_task"
    expected = "a checkpoint of the task that was asked for was expected"
    remedy = "Use imaging.open_predictor, which knows what each checkpoint does"


# ----------------------------------------------------------------------------------------------- configs and training


class ConfigInvalid(WrongUsage):
    """The config cannot be read, or a value is not what its key takes."""

    code = "config_invalid"
    expected = "a value of the documented type was expected"
    remedy = "Correct the config or the override"


class UnknownKey(WrongUsage):
    """A key that the config does not have; the nearest known one is named."""

    code = "unknown_key"
    remedy = "Correct the key"


class UnknownName(WrongUsage):
    """A network, loss or transform name that the registry does not have."""

    code = "unknown_name"
    remedy = "Choose one of the known names"


class ManifestInvalid(WrongUsage):
    """The list of training cases cannot be used."""

    code = "manifest_invalid"
    expected = "a dataset.json or a CSV with existing images and labels was expected"
    remedy = "Correct the manifest"


class MissingFile(InputRefused):
    """A manifest names a file that is not there."""

    code = "missing_file"
    expected = "an image and a mask for each row of the manifest were expected"
    remedy = "Put the file in its place, or take the row out of the manifest"


class DuplicateImage(InputRefused):
    """Two patients have the same voxels, so that a split would put one picture on both sides."""

    code = "duplicate_image"
    expected = "another image in each case was expected"
    remedy = "Take one of them out, or give both rows the same patient"


class EmptyClass(InputRefused):
    """No case has a structure that the data set names, so that nothing could learn it."""

    code = "empty_class"
    expected = "at least one case with each structure was expected"
    remedy = "Add cases that have it, or take it out of the labels"


class PatientLeak(WrongUsage):
    """A patient is on both sides of a split."""

    code = "patient_leak"
    expected = "each patient on one side of the split was expected"
    remedy = "Split by patient"


class DuplicateCases(WrongUsage):
    """Two cases of a data set have the same pixels; on two sides of a split one would be tested on what was learnt."""

    code = "duplicate_cases"
    expected = "pictures that differ were expected"
    remedy = "Remove the copies, or let data.duplicates=drop do it"


class LabelMismatch(WrongUsage):
    """A mask does not fit its image, or holds values that the config does not name."""

    code = "label_mismatch"
    expected = "a mask on its image's grid with the config's label ids was expected"
    remedy = "Correct the mask or the config's labels"


class TooFewCases(WrongUsage):
    """Too few cases for a split or an interval."""

    code = "too_few_cases"
    expected = "at least two cases in each part were expected"
    remedy = "Add cases, or change data.folds and data.test_fraction"


class DevicesUnsupported(WrongUsage):
    """More devices than this version trains on; their batches would overlap unnoticed."""

    code = "devices_unsupported"
    expected = "one device was expected"
    remedy = "Train with --devices 1"


class RunExists(WrongUsage):
    """The run folder already holds a run."""

    code = "run_exists"
    expected = "a new or empty run folder was expected"
    remedy = "Give another --out, or continue the run with --resume"


class NothingToResume(WrongUsage):
    """--resume was given and the run folder holds no training state."""

    code = "nothing_to_resume"
    expected = "a run folder with last.ckpt was expected"
    remedy = "Start the run without --resume"


class ResumeMismatch(WrongUsage):
    """The run was started with another config."""

    code = "resume_mismatch"
    expected = "the config that the run was started with was expected"
    remedy = "Resume with the same config, or start a new run"


class TrainingDiverged(InputRefused):
    """The loss is no longer a number."""

    code = "training_diverged"
    expected = "a finite loss was expected"
    remedy = "Look at the cases named, lower train.learning_rate or use --precision 32; the last good checkpoint stays"


# ------------------------------------------------------------------------------------------------------------- outputs


class DuplicateName(WrongUsage):
    """Two inputs of one call would be written to the same place, or two checkpoints have one name."""

    code = "duplicate_name"
    expected = "different names were expected"
    remedy = "Rename one, or run them apart with another --out"


class FormatNotApplicable(WrongUsage):
    """An output that cannot be made from this kind of input."""

    code = "format_not_applicable"
    expected = "a DICOM series was expected for seg"
    remedy = "Ask for nifti"


class SeveralSeries(WrongUsage):
    """One volume was asked for, and several were found."""

    code = "several_series"
    expected = "one volume was expected"
    remedy = "Name the series, or the volume of the series, that is meant; imgpipe inspect lists them"


class OutputNotWritable(WrongUsage):
    """The output cannot be made or written, or something that is not ours lies in its place."""

    code = "output_not_writable"
    expected = "a place that can be written was expected"
    remedy = "Give another place for the output, or free space and permissions"


class OutputNotBuilt(InternalFault):
    """An output could not be made from a finding; the report goes without it and says so."""

    code = "output_not_built"
    expected = "the output was expected to be made"
    remedy = "Report this to the maintainers with the series' DICOM attributes"


class UnexpectedFault(InternalFault):
    """A fault of imgpipe that no other code names."""

    code = "unexpected_fault"
    expected = "the command was expected to end"
    remedy = "Run `imgpipe --verbose ...` and report the traceback to the maintainers"


class GridMismatch(InternalFault):
    """The network's grid does not run along the series' own axes, so a mask cannot find its way back."""

    code = "grid_mismatch"
    expected = "parallel axes were expected"
    remedy = "Report this to the maintainers; nothing was written"


class StaleResult(InputRefused):
    """A result of an earlier run lies where this study's would, and the study as it is now has none."""

    code = "stale_result"
    expected = "the newest result of the study was expected there"
    remedy = "Do not use that result for the study as it is now; remove the folder or mend the study"


class StudyFailed(InternalFault):
    """A fault of imgpipe while it worked on a study; nothing of the study was written."""

    code = "study_failed"
    expected = "a report was expected"
    remedy = "Run `imgpipe --verbose infer ...` and report the traceback to the maintainers"


class OutputMismatch(InternalFault):
    """What was written, read back, differs from what was meant; the output is withheld."""

    code = "output_mismatch"
    expected = "the same content after reading back was expected"
    remedy = "Report this to the maintainers; the output was withheld"
