"""A GPU for tests: the functions of `cuda.bindings.driver` that `engine.backends.cuda` calls, over numpy memory.

A stream does nothing until it is waited for. Whoever reads too early, uses memory after it was freed, or memory that
nobody wrote (it holds NaN), is found out.
"""

import ctypes
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np

MAIN, SIDE = 0x51, 0x52  # streams, in the order in which they are made
OUT_OF_MEMORY, INVALID = 2, 1


class FakeDriver:
    """As the module `cuda.bindings.driver`; every function returns its status and its results.

    Attributes:
        calls: number of calls by function; kernels: launches outside of recordings.
        limit: bytes of memory.
    """

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    CUmemPool_attribute = SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD="threshold")
    cuuint64_t = int

    def __init__(self, capability=89):
        self.capability = capability
        self.calls, self.limit = Counter(), 1 << 34
        self.memory: dict[int, np.ndarray] = {}
        self.queue, self.recorded, self.streams = deque(), {}, [SIDE, MAIN]

    def __getattribute__(self, name):
        if name.startswith("cu") and name != "cuuint64_t":
            object.__getattribute__(self, "calls")[name] += 1
        return object.__getattribute__(self, name)

    def view(self, address, size):
        """The bytes at an address, which must be in memory that was not freed."""
        for start, array in self.memory.items():
            if start <= address and address + size <= start + array.size:
                return array[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def array(self, address, shape, dtype=np.float32):
        dtype = np.dtype(dtype)
        return self.view(address, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

    def enqueue(self, stream, work):
        """Put work on a stream, or into the recording under way there."""
        assert stream in (MAIN, SIDE), stream
        if stream in self.recorded:
            self.recorded[stream].append(work)
        else:
            assert stream == MAIN, "work outside of a recording on the stream for recordings"
            self.queue.append(work)
        return (0,)

    def cuInit(self, flags):
        return (0,)

    def cuDeviceGet(self, ordinal):
        return 0, ordinal

    def cuDeviceGetAttribute(self, attribute, device):
        return 0, self.capability // 10 if attribute == "major" else self.capability % 10

    def cuDeviceGetName(self, length, device):
        return 0, b"Fake GPU".ljust(length, b"\0")

    def cuDevicePrimaryCtxRetain(self, device):
        return 0, "context"

    def cuCtxSetCurrent(self, context):
        assert context == "context"
        return (0,)

    def cuDeviceGetDefaultMemPool(self, device):
        return 0, "pool"

    def cuMemPoolSetAttribute(self, pool, attribute, value):
        return (0,)

    def cuStreamCreate(self, flags):
        return 0, self.streams.pop()

    def cuGetErrorString(self, status):
        return 0, {OUT_OF_MEMORY: b"out of memory"}.get(status, b"invalid argument")

    def cuMemAllocAsync(self, size, stream):
        assert stream not in self.recorded
        if size + sum(array.size for array in self.memory.values()) > self.limit:
            return OUT_OF_MEMORY, 0
        array = np.full(size, 0xFF, dtype=np.uint8)
        self.memory[array.ctypes.data] = array
        return 0, array.ctypes.data

    def cuMemFreeAsync(self, address, stream):
        assert stream not in self.recorded
        return self.enqueue(stream, lambda: self.memory.pop(address))

    def cuMemsetD8Async(self, address, value, size, stream):
        return self.enqueue(stream, lambda: self.view(address, size).fill(value))

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        content = np.frombuffer(ctypes.string_at(source, size), dtype=np.uint8)
        return self.enqueue(stream, lambda: np.copyto(self.view(target, size), content))

    def cuMemcpyDtoDAsync(self, target, source, size, stream):
        return self.enqueue(stream, lambda: np.copyto(self.view(target, size), self.view(source, size)))

    def cuMemcpyDtoHAsync(self, target, source, size, stream):
        return self.enqueue(stream, lambda: ctypes.memmove(target, self.view(source, size).ctypes.data, size))

    def cuStreamSynchronize(self, stream):
        while self.queue:
            self.queue.popleft()()
        return (0,)

    def cuStreamBeginCapture(self, stream, mode):
        assert mode == "thread" and stream not in self.recorded
        self.recorded[stream] = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        return 0, self.recorded.pop(stream)

    def cuGraphInstantiate(self, graph, flags):
        return 0, tuple(graph)

    def cuGraphDestroy(self, graph):
        return (0,)

    def cuGraphExecDestroy(self, graph):
        return (0,)

    def cuGraphLaunch(self, graph, stream):
        for work in graph:
            self.enqueue(stream, work)
        return (0,)
