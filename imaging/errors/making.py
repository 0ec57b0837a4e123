"""What is refused of checkpoints, configs, trainings and outputs."""

from __future__ import annotations

from imaging.errors.tree import InputRefused, InternalFault, WrongUsage

# --------------------------------------------------------------------------------------------------------- checkpoints


class CheckpointCorrupt(InputRefused):
    """A file of the checkpoint differs from its checksum, or is missing."""

    code = "checkpoint_corrupt"
    expected = "every file as SHA256SUMS lists it was expected"
    remedy = "Fetch the checkpoint again"


class AnswerNotNumbers(InputRefused):
    """A network answered with what is no number, of which no mask and no probability can be made."""

    code = "answer_not_numbers"
    expected = "a number for every class was expected"
    remedy = "Try --engine torch; where that answers the same, the weights or the picture are at fault"


class EncoderUnusable(InputRefused):
    """The encoder that a text model stands on is not there, or is another one."""

    code = "encoder_unusable"
    expected = "the encoder that the config names by its checksum was expected"
    remedy = "Install it in the version of constraints.txt, or give its folder as encoder.folder"


class UnknownCheckpoint(WrongUsage):
    """No checkpoint of this name is shipped, and no folder of this path exists."""

    code = "unknown_checkpoint"
    remedy = "Choose one of the known ones, or give the path of a checkpoint folder"


class WrongTask(WrongUsage):
    """A checkpoint was asked for what another task does: masks of a classifier, or a class of a segmenter."""

    code = "wrong_task"
    expected = "a checkpoint of the task that was asked for was expected"
    remedy = "Name one of that task; `imgpipe models` tells each one's. In Python imaging.open_predictor opens any"


class FusionMismatch(WrongUsage):
    """A fusion was trained with other checkpoints than those that it is given, or for texts of another role."""

    code = "fusion_mismatch"
    expected = "the checkpoints that the fusion's config names were expected"
    remedy = "Use those, or train the fusion anew with `imgpipe train`"


# ------------------------------------------------------------------------------------------------ configs and training


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


class UnknownCode(WrongUsage):
    """A label has no code, or one that is not known with this meaning; a report would say it wrongly."""

    code = "unknown_code"
    expected = "a code with its meaning from imaging/codes.csv, DICOM PS3.16 or the table data.codes was expected"
    remedy = "Correct the code, or add it with its source to a table of your own and name that in data.codes"


class CodesInvalid(WrongUsage):
    """A table of codes cannot be used."""

    code = "codes_invalid"
    expected = (
        "a CSV was expected with the columns name, scheme, value, meaning, source (and synonyms, category, radlex)"
    )
    remedy = "Correct the table that data.codes names"


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


class LabelConflict(InputRefused):
    """Two cases have the same pixels and different classes: one of them is wrong, and nothing says which."""

    code = "label_conflict"
    expected = "the same classes for the same picture were expected"
    remedy = "Look at the picture and correct its classes, or take both cases out"


class EmptyClass(InputRefused):
    """No case has a structure or a class that the data set names, so that nothing could learn it."""

    code = "empty_class"
    expected = "at least one case with each was expected"
    remedy = "Add cases that have it, or take it out of the labels"


class PatientLeak(WrongUsage):
    """A patient is on both sides of a split."""

    code = "patient_leak"
    expected = "each patient on one side of the split was expected"
    remedy = "Split by patient"


class LearntCases(WrongUsage):
    """Cases of a fusion have trained a checkpoint that it brings together, so that what it says of them is too good."""

    code = "learnt_cases"
    expected = "cases that none of the checkpoints was fitted on were expected"
    remedy = "Take them out; the validation and test cases of the checkpoint may stay"


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


class ChannelMismatch(WrongUsage):
    """The channels of a case do not lie on one grid, or are not as many as the network takes."""

    code = "channel_mismatch"
    expected = "every channel on the grid of the first was expected"
    remedy = "Resample the channels to one grid, or correct the manifest"


class TooFewCases(WrongUsage):
    """Too few cases for a split or an interval."""

    code = "too_few_cases"
    expected = "at least two cases in each part were expected"
    remedy = "Add cases, or change data.folds and data.test_fraction"


class DevicesInvalid(WrongUsage):
    """The devices that a training is to share its batches over are not there, or cannot share them evenly."""

    code = "devices_invalid"
    expected = "as many devices as there are was expected"
    remedy = "Correct --devices, --nodes or train.batch_size"


class ProcessLost(InternalFault):
    """One of the processes of a training ended without a word: killed by the system, or by a fault of imgpipe."""

    code = "process_lost"
    expected = "each process of the training was expected to end by itself"
    remedy = "Look whether memory ran out, then continue with --resume; `imgpipe --verbose train ...` tells more"


class LoggerMissing(WrongUsage):
    """The config names a logger whose package is not installed."""

    code = "logger_missing"
    expected = "the package of each logger in train.loggers was expected"
    remedy = "Install it, or take it out of train.loggers"


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


class DataWorkerDied(WrongUsage):
    """A process that prepares batches ended before its time; mostly the kernel ended it for want of memory."""

    code = "data_worker_died"
    expected = "all processes that prepare batches were expected to live as long as the run"
    remedy = (
        "Give the run more memory (in a container /dev/shm too) or a lower data.workers, and continue with --resume: "
        "the last state is whole"
    )


class CaseChanged(InputRefused):
    """A file of a case is gone, or another one, since the run began."""

    code = "case_changed"
    expected = "the files that the run began with were expected"
    remedy = "Put the file back and continue with --resume, or start a new run on the data as they are now"


class StateCorrupt(InputRefused):
    """A state of a run is damaged, or is none of this run; nothing in it was run."""

    code = "state_corrupt"
    expected = "a whole state of this run was expected"
    remedy = (
        "Copy state/best.ckpt over state/last.ckpt and continue with --resume from the best epoch, or start a new run"
    )


class StartUnusable(WrongUsage):
    """The weights that a training is to begin with are not there, or cannot be read without running code."""

    code = "start_unusable"
    expected = "a checkpoint, a MONAI bundle or a file of finite tensors was expected"
    remedy = "Correct train.start.weights"


class StartMismatch(WrongUsage):
    """Too few of the weights that a training is to begin with fit its network; it would begin nearly random."""

    code = "start_mismatch"
    expected = "weights of the same network were expected"
    remedy = "Choose weights of this network, correct network.options, or lower train.start.least_share"


class MissingPackage(WrongUsage):
    """A package that only this needs is not installed."""

    code = "missing_package"
    expected = "an installed package was expected"
    remedy = "Install it, as the message says"


class EngineRefused(WrongUsage):
    """An engine was asked for by name that the checkpoint has not been accepted with, or that cannot run it."""

    code = "engine_refused"
    expected = "an engine whose answers were compared with torch's on cases of the checkpoint was expected"
    remedy = "Ask for --engine auto or torch, or compare them with `imgpipe accept`"


class ExportImpossible(WrongUsage):
    """A form was asked for that cannot say what the checkpoint does, or int8 of a checkpoint that has none."""

    code = "export_impossible"
    expected = "one segmenting network with one channel was expected"
    remedy = "Export to openvino or onnx"


class NoTrialComplete(InputRefused):
    """No trial of a search came to its end, so there is no best one."""

    code = "no_trial_complete"
    expected = "at least one complete trial was expected"
    remedy = "Look at trials.csv, and search other ranges"


class JobLost(InternalFault):
    """A process that measured trials of a search ended before its time, as when memory gives out."""

    code = "job_lost"
    expected = "processes that end when there is nothing left to measure were expected"
    remedy = "Go on with --resume, with fewer --jobs where memory gave out; the trial is measured again"


class TrainingDiverged(InputRefused):
    """The loss, or a weight, is no longer a number; such weights are never written as a state."""

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
    expected = "a DICOM series that it can be about was expected"
    remedy = "Leave this format out; html, nifti and json can be made instead"


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
