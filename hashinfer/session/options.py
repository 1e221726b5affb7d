"""onnxruntime's option objects, with the fields that mean something here and those that scripts commonly set."""

from dataclasses import dataclass, field
from enum import IntEnum

PROVIDER = "CPUExecutionProvider"


class GraphOptimizationLevel(IntEnum):
    """Accepted for compatibility: this engine always fuses, and never changes a result by it."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(IntEnum):
    """Accepted for compatibility: steps run in order."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


@dataclass
class SessionOptions:
    """intra_op_num_threads: threads of a session, 0 for the default. Other fields are accepted and change nothing."""

    intra_op_num_threads: int = 0
    inter_op_num_threads: int = 0
    execution_mode: ExecutionMode = ExecutionMode.ORT_SEQUENTIAL
    graph_optimization_level: GraphOptimizationLevel = GraphOptimizationLevel.ORT_ENABLE_ALL
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True
    enable_mem_reuse: bool = True
    enable_profiling: bool = False
    use_deterministic_compute: bool = True
    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    optimized_model_filepath: str = ""
    profile_file_prefix: str = ""
    _entries: dict[str, str] = field(default_factory=dict, repr=False)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Remember an entry; none has a meaning here."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """The entry set before. Raises KeyError if there is none."""
        return self._entries[key]


@dataclass
class RunOptions:
    """Accepted by run for compatibility; the fields change nothing."""

    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    only_execute_path_to_fetches: bool = False


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output: its name, its type as onnxruntime writes it ("tensor(float)"), its shape.

    shape holds numbers, names of dimensions, and None where nothing is said.
    """

    name: str
    type: str
    shape: list[int | str | None]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the file says of itself."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


def get_available_providers() -> list[str]:
    """The one provider there is."""
    return [PROVIDER]


get_all_providers = get_available_providers


def get_device() -> str:
    """What the engine runs on."""
    return "CPU"
