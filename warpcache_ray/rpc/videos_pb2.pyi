from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "seed", "fps", "policy", "quality", "quality_floor", "priority", "deadline_s", "output_format", "webhook_url", "lora", "lora_scale", "image_file", "image_url", "cancel_on_disconnect")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FLOOR_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    LORA_SCALE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FILE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_URL_FIELD_NUMBER: _ClassVar[int]
    CANCEL_ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    fps: int
    policy: _struct_pb2.Value
    quality: _struct_pb2.Value
    quality_floor: str
    priority: str
    deadline_s: float
    output_format: str
    webhook_url: str
    lora: str
    lora_scale: float
    image_file: bytes
    image_url: str
    cancel_on_disconnect: bool
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., num_frames: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., fps: _Optional[int] = ..., policy: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., quality: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., quality_floor: _Optional[str] = ..., priority: _Optional[str] = ..., deadline_s: _Optional[float] = ..., output_format: _Optional[str] = ..., webhook_url: _Optional[str] = ..., lora: _Optional[str] = ..., lora_scale: _Optional[float] = ..., image_file: _Optional[bytes] = ..., image_url: _Optional[str] = ..., cancel_on_disconnect: bool = ...) -> None: ...

class JobId(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("job_id", "after")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after: str
    def __init__(self, job_id: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("job_id", "id", "kind", "data", "job")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    id: str
    kind: str
    data: _struct_pb2.Struct
    job: Job
    def __init__(self, job_id: _Optional[str] = ..., id: _Optional[str] = ..., kind: _Optional[str] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "status", "request", "seed", "policy", "policy_version", "policy_origin", "lowered_to", "created_at", "started_at", "finished_at", "progress", "step", "total_steps", "queue_position", "eta_s", "epoch", "fence", "replica", "checkpoint_step", "cache", "attempts", "result", "video", "error", "webhook")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LOWERED_TO_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: str
    request: _struct_pb2.Struct
    seed: int
    policy: _struct_pb2.Struct
    policy_version: str
    policy_origin: PolicyOrigin
    lowered_to: str
    created_at: float
    started_at: float
    finished_at: float
    progress: float
    step: int
    total_steps: int
    queue_position: int
    eta_s: float
    epoch: int
    fence: int
    replica: str
    checkpoint_step: int
    cache: _struct_pb2.Struct
    attempts: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    result: _struct_pb2.Struct
    video: str
    error: Error
    webhook: Delivery
    def __init__(self, id: _Optional[str] = ..., status: _Optional[str] = ..., request: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seed: _Optional[int] = ..., policy: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., policy_version: _Optional[str] = ..., policy_origin: _Optional[_Union[PolicyOrigin, _Mapping]] = ..., lowered_to: _Optional[str] = ..., created_at: _Optional[float] = ..., started_at: _Optional[float] = ..., finished_at: _Optional[float] = ..., progress: _Optional[float] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., queue_position: _Optional[int] = ..., eta_s: _Optional[float] = ..., epoch: _Optional[int] = ..., fence: _Optional[int] = ..., replica: _Optional[str] = ..., checkpoint_step: _Optional[int] = ..., cache: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., result: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., video: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., webhook: _Optional[_Union[Delivery, _Mapping]] = ...) -> None: ...

class PolicyOrigin(_message.Message):
    __slots__ = ("source", "quality", "slot", "version", "why")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    source: str
    quality: _struct_pb2.Value
    slot: str
    version: int
    why: str
    def __init__(self, source: _Optional[str] = ..., quality: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., slot: _Optional[str] = ..., version: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("message", "type", "param", "code", "retryable")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    message: str
    type: str
    param: str
    code: str
    retryable: bool
    def __init__(self, message: _Optional[str] = ..., type: _Optional[str] = ..., param: _Optional[str] = ..., code: _Optional[str] = ..., retryable: bool = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("attempts", "next_at", "delivered_at", "last_error")
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_AT_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    attempts: int
    next_at: float
    delivered_at: float
    last_error: str
    def __init__(self, attempts: _Optional[int] = ..., next_at: _Optional[float] = ..., delivered_at: _Optional[float] = ..., last_error: _Optional[str] = ...) -> None: ...

class VideoPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
