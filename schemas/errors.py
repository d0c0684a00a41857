"""Every error a caller can meet, as one tree.

TidegateError                 anything raised on purpose
├── InputError                what the user handed over is wrong; the command line exits 2
│   ├── ManifestError         a manifest; names the YAML path and the way out
│   ├── EventError            a telemetry event; names the field
│   ├── SettingsError         an environment variable or option
│   └── Refusal               a manifest revision or an operation that is not taken; says why
│       └── SignatureError    its signature, or the key behind it
└── LogError                  the log under the worker is not what it must be; the worker stops
    ├── HoleError             records are missing from it
    ├── TopicError            a topic is missing or configured in a way that would break results
    │   ├── NoBrokerError     no broker answers
    │   └── AccessError       this user may not do what it has to
    └── StateError            a checkpoint cannot be read back
"""


class TidegateError(Exception):
    """Root of every error that Tidegate raises on purpose."""


class InputError(TidegateError):
    """The caller's input is wrong; the message names the place and the way out."""


class ManifestError(InputError):
    """A manifest is wrong at one YAML path.

    Attributes: ``path`` the YAML path (``flags.x.gates.delta_s``), ``problem`` what is wrong there,
    ``fix`` what to do about it.
    """

    def __init__(self, path: str, problem: str, fix: str) -> None:
        super().__init__(f"{path}: {problem}; {fix}")
        self.path, self.problem, self.fix = path, problem, fix


class EventError(InputError):
    """A telemetry event breaks the schema; the message names the field."""


class SettingsError(InputError):
    """A setting is wrong; the message names the variable."""


class LogError(TidegateError):
    """The log cannot be trusted as it is; the worker stops without another checkpoint."""


class HoleError(LogError):
    """Records are missing from a log; names topic, partition and offsets."""


class TopicError(LogError):
    """A topic is missing or misconfigured; names the topic and the command that mends it."""


class StateError(LogError):
    """A checkpoint cannot be read back; names topic, partition and offset."""


class Refusal(InputError):
    """A manifest revision or an operation is not taken: what was in force stays; the message says why."""


class SignatureError(Refusal):
    """A document is not signed as it must be; nothing inside it was looked at."""


class NoBrokerError(TopicError):
    """No broker answers; names its address."""


class AccessError(TopicError):
    """This user may not do what it has to with a topic or group; names it."""
