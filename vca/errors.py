"""The errors that a person is meant to read: one line saying what was given, what is allowed, what to do."""


class VcaError(Exception):
    """An expected failure. The command line prints its text as one line and exits with `exit_code`."""

    exit_code = 1


class SettingsError(VcaError):
    """A preset, key, type or combination of settings that cannot run."""

    exit_code = 2


class DataError(VcaError):
    """Data that is missing, empty, or too broken to train on."""

    exit_code = 3


class ArtifactError(VcaError):
    """An adapter, checkpoint or manifest that is missing, corrupt, or made for something else."""

    exit_code = 4


class ResourceError(VcaError):
    """The machine lacks something: disk space, memory, a device, an endpoint."""

    exit_code = 5


class Interrupted(VcaError):
    """Stopped by SIGTERM after a checkpoint; 128 + 15, as a shell reports it."""

    exit_code = 143
