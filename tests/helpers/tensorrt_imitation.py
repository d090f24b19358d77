"""TensorRT and CUDA on the memory of the host, for tests without a card.

The names are those of `TENSORRT_API`, which test_tensorrt_contract.py holds against the real bindings; the
engine runs ONNX Runtime between two addresses. Work put into a stream while it is being recorded is not done,
exactly as on a card. Every call is written down, and any can be told to fail.
"""

import ctypes
import json
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np

NOTHING = object()  # told as an answer: None


class World:
    "What the imitations share: the story of all calls, what is to fail, and the state of the one stream."

    def __init__(self):
        self.story, self.fail, self.blocks, self.recording, self.limit, self.freed = (
            [],
            {},
            {},
            None,
            1 << 32,
            0,
        )

    def note(self, name, *args, default=None):
        "Write a call down; what it shall answer instead, when told so."
        self.story.append((name, *args))
        answers = self.fail.get(name)
        if isinstance(answers, list):
            return answers.pop(0) if answers else default
        return {NOTHING: None, None: default}[answers] if answers is NOTHING or answers is None else answers

    def do(self, work):
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def names(self):
        return [call[0] for call in self.story]


def cuda_runtime(world: World) -> SimpleNamespace:
    "cuda.bindings.runtime on host memory."

    def allocate(name, nbytes):
        if (
            world.note(name, nbytes, default=0) == 2
            or sum(len(b) for b in world.blocks.values()) + nbytes > world.limit
        ):
            return 2, None
        block = ctypes.create_string_buffer(nbytes)
        world.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def release(name, address):
        world.note(name)
        world.freed += 1
        del world.blocks[address]
        return (0,)

    def copy(to, source, nbytes, kind, stream):
        status = world.note("cudaMemcpyAsync", kind, nbytes, stream, default=0)
        if not status:
            world.do(lambda: ctypes.memmove(to, source, nbytes))
        return (status,)

    def begin(stream, mode):
        world.recording = []
        return (world.note("cudaStreamBeginCapture", stream, default=0),)

    def end(stream):
        work, world.recording = world.recording, None
        return world.note("cudaStreamEndCapture", default=0), work

    def launch(graph, stream):
        status = world.note("cudaGraphLaunch", stream, default=0)
        for work in graph if not status else ():
            work()
        return (status,)

    say = lambda name, *rest: lambda *args: (world.note(name, *args[:0], default=0), *rest)
    return SimpleNamespace(
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeRelaxed=2),
        cudaSetDevice=lambda index: (world.note("cudaSetDevice", index, default=0),),
        cudaStreamCreateWithFlags=say("cudaStreamCreateWithFlags", 77),
        cudaStreamSynchronize=say("cudaStreamSynchronize"),
        cudaStreamDestroy=say("cudaStreamDestroy"),
        cudaMemGetInfo=say("cudaMemGetInfo", 10**9, 2 * 10**9),
        cudaMalloc=lambda n: allocate("cudaMalloc", n),
        cudaMallocHost=lambda n: allocate("cudaMallocHost", n),
        cudaFree=lambda a: release("cudaFree", a),
        cudaFreeHost=lambda a: release("cudaFreeHost", a),
        cudaMemcpyAsync=copy,
        cudaStreamBeginCapture=begin,
        cudaStreamEndCapture=end,
        cudaGraphInstantiate=lambda graph, flags: (world.note("cudaGraphInstantiate", default=0), graph),
        cudaGraphDestroy=say("cudaGraphDestroy"),
        cudaGraphLaunch=launch,
        cudaGraphExecDestroy=say("cudaGraphExecDestroy"),
    )


DataType = IntEnum("DataType", "FLOAT HALF BF16 UINT8 INT32", start=0)
_ONNX = {1: DataType.FLOAT, 10: DataType.HALF, 2: DataType.UINT8, 6: DataType.INT32}
_ORT = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(uint8)": DataType.UINT8,
    "tensor(int32)": DataType.INT32,
}
NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.UINT8: np.uint8,
    DataType.INT32: np.int32,
}
TensorIOMode = IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
_fixed = lambda shape: tuple(d if isinstance(d, int) and d > 0 else -1 for d in shape)


class Tensor:
    def __init__(self, value):
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, _ONNX.get(kind.elem_type, DataType.INT32)
        self.shape = tuple(d.dim_value or -1 for d in kind.shape.dim)


class Engine:
    "A plan of the imitation: an ONNX file behind a line of JSON."

    def __init__(self, world, plan):
        import onnxruntime as ort

        line, _, model = plan.partition(b"\n")
        self._world, self._facts = world, json.loads(line.removeprefix(b"imitated "))
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = self._session.get_inputs(), self._session.get_outputs()
        self._all = [*self._inputs, *self._outputs]
        self.num_io_tensors, self.device_memory_size_v2 = len(self._all), 1 << 20

    def _of(self, name):
        return next(t for t in self._all if t.name == name)

    def get_tensor_name(self, index):
        return self._all[index].name

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self._of(name) in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _ORT[self._of(name).type]

    def get_tensor_shape(self, name):
        return _fixed(self._of(name).shape)

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(s) for s in self._facts["profile"]]

    def create_execution_context(self):
        return self._world.note("create_execution_context", default=Context(self))


class Context:
    def __init__(self, engine):
        self._engine, self._world, self._shape, self._at = engine, engine._world, None, {}

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        fits = all(a <= s <= b for a, s, b in zip(low, shape, high))
        if self._world.note("set_input_shape", tuple(shape), default=fits):
            self._shape = tuple(shape)
        return self._shape == tuple(shape)

    def get_tensor_shape(self, name):
        shape = _fixed(self._engine._of(name).shape)
        return (self._shape[0], *shape[1:]) if self._shape else shape

    def set_tensor_address(self, name, memory):
        self._at[name] = memory
        return self._world.note("set_tensor_address", name, default=True)

    def execute_async_v3(self, stream_handle):
        answer = self._world.note("execute_async_v3", stream_handle, default=True)
        if callable(answer):
            return answer()
        shape = self._shape
        if answer:
            self._world.do(lambda: self._run(shape))
        return answer

    def _run(self, shape):
        one, session = self._engine._inputs[0], self._engine._session
        dtype = NUMPY[_ORT[one.type]]
        given = np.ctypeslib.as_array(
            (ctypes.c_uint8 * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(
                self._at[one.name]
            )
        )
        for output, value in zip(
            self._engine._outputs, session.run(None, {one.name: given.view(dtype).reshape(shape)})
        ):
            value = np.ascontiguousarray(value)
            ctypes.memmove(self._at[output.name], value.ctypes.data, value.nbytes)


class Network:
    def __init__(self, world):
        self._world, self._graph = world, None

    num_inputs, num_outputs = (
        property(lambda self: len(self._graph.input)),
        property(lambda self: len(self._graph.output)),
    )
    num_layers = property(lambda self: len(self._graph.node))

    def get_input(self, i):
        return Tensor(self._graph.input[i])

    def get_output(self, i):
        return Tensor(self._graph.output[i])

    def get_layer(self, i):
        node, halves = self._graph.node[i], {t.name for t in self._graph.initializer if t.data_type == 10}
        kind = LayerType.QUANTIZE if node.op_type == "QuantizeLinear" else LayerType.OTHER
        return SimpleNamespace(
            type=kind,
            num_outputs=1,
            get_output=lambda k: SimpleNamespace(
                dtype=DataType.HALF if halves & set(node.input) else DataType.FLOAT
            ),
        )


LayerType = IntEnum("LayerType", "QUANTIZE OTHER", start=0)


class Config:
    def __init__(self, world):
        object.__setattr__(self, "_world", world)

    def __setattr__(self, name, value):
        self._world.note(f"config.{name}", value)
        object.__setattr__(self, name, value)

    def set_flag(self, flag):
        self._world.note("set_flag", flag.name)

    def clear_flag(self, flag):
        self._world.note("clear_flag", flag.name)

    def set_memory_pool_limit(self, pool, size):
        self._world.note("set_memory_pool_limit", pool.name, size)

    def add_optimization_profile(self, profile):
        object.__setattr__(self, "_profile", profile)
        return self._world.note("add_optimization_profile", default=0)

    def create_timing_cache(self, data):
        return self._world.note(
            "create_timing_cache", bytes(data), default=SimpleNamespace(serialize=lambda: b"timings")
        )

    def set_timing_cache(self, cache, ignore_mismatch):
        return self._world.note("set_timing_cache", ignore_mismatch, default=True)

    def get_timing_cache(self):
        return self._world.note("get_timing_cache", default=SimpleNamespace(serialize=lambda: b"timings"))


class Profile:
    def __init__(self, world):
        self._world, self._shapes = world, None

    def set_shape(self, name, low, best, high):
        self._world.note("set_shape", name, low, best, high)
        self._shapes = [low, best, high]


def tensorrt(world: World, version: str = "10.16.1.11", name: str = "tensorrt") -> ModuleType:
    "The module."

    class ILogger:
        def __init__(self):
            pass

        def log(self, severity, message):
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self):
            pass

        def phase_start(self, phase_name, parent_phase, num_steps):
            raise NotImplementedError

        def step_complete(self, phase_name, step):
            raise NotImplementedError

        def phase_finish(self, phase_name):
            raise NotImplementedError

    class Builder:
        def __init__(self, log):
            if world.note("Builder", default=True) is None:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._log = log

        def create_network(self, flags):
            world.note("create_network", flags)
            return Network(world)

        def create_builder_config(self):
            return Config(world)

        def create_optimization_profile(self):
            return Profile(world)

        def build_serialized_network(self, network, config):
            config.progress_monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not config.progress_monitor.step_complete("Building engine", step):
                    return None
            config.progress_monitor.phase_finish("Building engine")
            if world.note("build_serialized_network", default=True) is None:
                self._log.log(1, world.fail.get("reason", "Could not find any implementation for node X"))
                return None
            return (
                b"imitated "
                + json.dumps({"profile": config._profile._shapes}).encode()
                + b"\n"
                + network._model
            )

    class OnnxParser:
        def __init__(self, network, log):
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, i):
            return self._errors[i]

        def parse_from_file(self, path):
            import onnx

            world.note("parse_from_file")
            try:
                model = onnx.load(path)
            except Exception as e:
                reason = f"Failed to parse: {e}"
                self._errors = [
                    SimpleNamespace(desc=lambda: reason, node_name=lambda: "", node_operator=lambda: "")
                ]
                return False
            self._network._graph, self._network._model = model.graph, model.SerializeToString()
            return True

    class Runtime:
        def __init__(self, log):
            self.engine_host_code_allowed, self._log = False, log
            world.note("Runtime")

        def deserialize_cuda_engine(self, plan):
            answer = world.note("deserialize_cuda_engine", self.engine_host_code_allowed, default=True)
            if answer is None or not bytes(plan).startswith(b"imitated "):
                self._log.log(1, "The engine plan file is not compatible with this version of TensorRT")
                return None
            return Engine(world, bytes(plan))

    module = ModuleType(name)
    for member in (
        ILogger,
        IProgressMonitor,
        Builder,
        OnnxParser,
        Runtime,
        DataType,
        TensorIOMode,
        LayerType,
    ):
        setattr(module, member.__name__, member)
    module.__version__, module.init_libnvinfer_plugins = (
        version,
        lambda log, namespace: world.note("init_libnvinfer_plugins", default=True),
    )
    for kind, names in {
        "BuilderFlag": "VERSION_COMPATIBLE TF32",
        "HardwareCompatibilityLevel": "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY",
        "MemoryPoolType": "WORKSPACE",
        "NetworkDefinitionCreationFlag": "EXPLICIT_BATCH STRONGLY_TYPED",
    }.items():
        setattr(module, kind, IntEnum(kind, names, start=0))
    return module


CLASSES = {
    "INetworkDefinition": Network,
    "ITensor": Tensor,
    "IBuilderConfig": Config,
    "IOptimizationProfile": Profile,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
}
