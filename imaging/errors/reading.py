"""What is refused while studies, series and data sets are read."""

from __future__ import annotations

from imaging.errors.tree import InputRefused, WrongUsage

# --------------------------------------------------------------------------------------------------- files and folders


class NothingFound(InputRefused):
    """The path holds no study."""

    code = "nothing_found"
    expected = "at least one DICOM, .nii, .nii.gz or .png file was expected"
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


class ArchiveNotUnpacked(ArchiveRefused):
    """An archive for which there is no room now, or whose disk cannot be read or written; nothing of it is kept."""

    code = "archive_not_unpacked"
    expected = "room for what is in it, on a disk that works, was expected"
    remedy = "Free space or mend the disk; `imgpipe watch` tries again by itself"


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


class MemoryTooSmall(InputRefused):
    """What a series needs, or a single tile of it, does not fit into the budget of memory that was given."""

    code = "memory_too_small"
    expected = "a larger budget was expected"
    remedy = "Give at least so much with --memory, or leave it out where the machine has enough"


class GpuMemoryTooSmall(InputRefused):
    """What a series needs, or a single tile of it, does not fit into the memory of the GPU that is free."""

    code = "gpu_memory_too_small"
    expected = "room for it was expected"
    remedy = "See with nvidia-smi who else holds memory; with CUDA_VISIBLE_DEVICES= the processor computes"


class MemoryInvalid(WrongUsage):
    """A budget of memory that is no amount."""

    code = "memory_invalid"
    expected = "a number with its unit was expected, such as 4GB or 512MiB"
    remedy = "Correct --memory"


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
    """What is listed and left aside by design, such as what a series holds beside pictures: no fault of anybody."""


class NotAnImage(SetAside):
    """The series holds objects without pixels: reports, dose records, presentation states."""

    code = "not_an_image"
    expected = "image instances were expected"
    remedy = "Nothing to do: the object is listed and left aside"


class DeviceReport(SetAside):
    """An SR that a device observed or that is about doses: no radiologist's words."""

    code = "device_report"
    expected = "a report that a person observed was expected"
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


class TextNotJudged(SetAside):
    """What would judge a text is not installed; what it mentions is told all the same."""

    code = "text_not_judged"
    expected = "the packages that text models need were expected"
    remedy = "Install them: pip install 'imgpipe[text]'"


class PartRemoved(SetAside):
    """A run that was killed left a part of a result in the output folder; nobody wrote to it any more."""

    code = "part_removed"
    expected = "whole results alone were expected"
    remedy = "Nothing to do: it was removed, and its study is reported on again where it is among those given"


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


# ------------------------------------------------------------------------------------------------- texts beside a study


class TextEmpty(InputRefused):
    """A text without a word."""

    code = "text_empty"
    expected = "a request or report with words was expected"
    remedy = "Check where the text is exported, or leave it out"


class NotPlainText(InputRefused):
    """What should be a text is binary, or a document of another kind: PDF, RTF, an office file."""

    code = "not_plain_text"
    expected = "plain text was expected"
    remedy = "Export the report as plain text in UTF-8, as FHIR JSON or as a DICOM SR"


class TextTooLarge(InputRefused):
    """A text of more bytes than any report has; no more of it was read than shows that."""

    code = "text_too_large"
    expected = "a text of at most 1 MB was expected"
    remedy = "Give the one request or report that belongs to the study"


class TextEncoding(InputRefused):
    """The bytes are no text in the encoding that they declare, or, without one, in UTF-8."""

    code = "text_encoding"
    expected = "UTF-8, or an encoding that is declared and kept, was expected"
    remedy = "Save the text as UTF-8"


class TextLanguage(InputRefused):
    """A text in another language: its negations would be read as none."""

    code = "text_language"
    expected = "English was expected"
    remedy = "Give an English text, or leave it out"


class TextOfAnother(InputRefused):
    """A text that names another study, patient or order than the images do."""

    code = "text_of_another"
    expected = "the UID, the PatientID and the accession number of the images were expected where the text names any"
    remedy = "Give the text that belongs to the study"


class TextOfNobody(InputRefused):
    """A request.txt or report.txt that lies beside the images of several studies, or of none."""

    code = "text_of_nobody"
    expected = "the images of one DICOM study were expected around it"
    remedy = "Put it into the folder of its study's images, or give that study alone with --text FILE"


class NotAReport(InputRefused):
    """A document that is no reader's request or report: withdrawn, of another kind, or written by an algorithm."""

    code = "not_a_report"
    expected = "a request or a report that a person stands behind was expected"
    remedy = "Give the request or the radiologist's report, or leave it out"


class NotFhir(InputRefused):
    """JSON that is no FHIR ServiceRequest or DiagnosticReport, or breaks the rules of JSON or of FHIR."""

    code = "not_fhir"
    expected = "a FHIR R4 or R5 ServiceRequest or DiagnosticReport, alone or as the only one in a Bundle, was expected"
    remedy = "Export the resource again as JSON"


class TextOfMany(WrongUsage):
    """A text that was given for the call, which has several studies, or none."""

    code = "text_of_many"
    expected = "one study was expected, which the text belongs to"
    remedy = "Give one study with its text, or put each text beside its study's images"


class TextRole(WrongUsage):
    """It is not told whether a text was written before the image was read, or it is said otherwise than it is."""

    code = "text_role"
    expected = "a request (written before the image was read) or a report (describing the image) was expected"
    remedy = "Say which with --text-role request or --text-role report"
