"""One GPU through the CUDA driver's own interface (`cuda-bindings`): memory, one stream, recorded launches; no PyTorch.

All work is put on one stream, so that it runs in the order of the calls; memory is taken and given back in that order
too. Only `get` and `synchronize` wait for it.
"""

import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...core.errors import MRCError, reason

KEPT = 1 << 28  # bytes of freed memory that are not given back to the driver
INSTALL = "pip install 'mrc-edit[trt-rtx]' or 'mrc-edit[trt]'"


class Buffer:
    """An array in device memory, which is freed with it."""

    def __init__(self, device: "Device", shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = device.allocate(max(self.nbytes, 1))
        weakref.finalize(self, device.free, self.address).atexit = False


class Recording:
    """Launches that were recorded once and run at once."""

    def __init__(self, device: "Device", executable: Any) -> None:
        self.device, self.executable = device, executable
        weakref.finalize(self, device.call, "cuGraphExecDestroy", executable).atexit = False

    def launch(self) -> None:
        self.device.call("cuGraphLaunch", self.executable, self.device.stream)


class Device:
    """The first GPU that the process sees, with its primary context, which other libraries share.

    Attributes:
        capability: such as 89 for SM 8.9.
        stream: address of the stream.
        lock: held by whoever puts work on the stream that belongs together.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise MRCError(f"the CUDA driver is called through cuda-bindings ({error}); {INSTALL}") from None
        self.driver: Any = driver
        self.context: Any = None
        self.lock = threading.RLock()
        try:
            self.call("cuInit", 0)
            ordinal = self.call("cuDeviceGet", 0)
        except Exception as error:  # cuda-bindings raises errors of several kinds where there is no driver
            raise MRCError(
                f"there is no GPU to be used ({reason(error)}); install NVIDIA's driver, or choose another backend"
            ) from None
        prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
        major, minor = (
            self.call("cuDeviceGetAttribute", getattr(driver.CUdevice_attribute, prefix + part), ordinal)
            for part in ("MAJOR", "MINOR")
        )
        self.capability = 10 * major + minor
        self.name = self.call("cuDeviceGetName", 256, ordinal).split(b"\0")[0].decode(errors="replace")
        self.context = self.call("cuDevicePrimaryCtxRetain", ordinal)
        pool = self.call("cuDeviceGetDefaultMemPool", ordinal)
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self.call("cuMemPoolSetAttribute", pool, threshold, driver.cuuint64_t(KEPT))
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream, self.side = (int(self.call("cuStreamCreate", flags)) for _ in range(2))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver and return what it gives, with this GPU's context current in the thread.

        Raises:
            RuntimeError: it failed; with the driver's words.
        """
        if self.context is not None:
            self.driver.cuCtxSetCurrent(self.context)
        status, *values = getattr(self.driver, name)(*arguments)
        if int(status):
            text = self.driver.cuGetErrorString(status)[1]
            raise RuntimeError(f"CUDA error {int(status)}: {text.decode() if text else 'unknown'}")
        return values[0] if values else None

    def allocate(self, size: int) -> int:
        return int(self.call("cuMemAllocAsync", size, self.stream))

    def free(self, address: int) -> None:
        self.call("cuMemFreeAsync", address, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Buffer:
        return Buffer(self, shape, np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Buffer:
        buffer = self.empty(shape, dtype)
        self.call("cuMemsetD8Async", buffer.address, 0, buffer.nbytes, self.stream)
        return buffer

    def put(self, array: np.ndarray) -> Buffer:
        """A copy of `array` on the device."""
        buffer = self.empty(array.shape, array.dtype)
        self.write(buffer, array)
        return buffer

    def write(self, buffer: Buffer, array: np.ndarray) -> None:
        """Copy an array of the same size into a buffer; `array` may change when this returns."""
        whole = np.ascontiguousarray(array, dtype=buffer.dtype)
        assert whole.nbytes == buffer.nbytes
        self.call("cuMemcpyHtoDAsync", buffer.address, whole.ctypes.data, buffer.nbytes, self.stream)

    def copy(self, source: Buffer, target: Buffer) -> None:
        assert source.nbytes == target.nbytes
        self.call("cuMemcpyDtoDAsync", target.address, source.address, source.nbytes, self.stream)

    def get(self, buffer: Buffer) -> np.ndarray:
        """The content of a buffer, once all work before it is done."""
        array = np.empty(buffer.shape, buffer.dtype)
        self.call("cuMemcpyDtoHAsync", array.ctypes.data, buffer.address, buffer.nbytes, self.stream)
        self.synchronize()
        return array

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def record(self, work: Callable[[int], None]) -> Recording:
        """Record what `work` puts on the stream it is given, without running it.

        That is a stream of its own: what other threads, or Python as it frees a buffer, put on the device's stream
        meanwhile is not recorded.
        """
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self.side, mode)
        try:
            work(self.side)
        except BaseException:
            self.driver.cuStreamEndCapture(self.side)  # which fails as well
            raise
        graph = self.call("cuStreamEndCapture", self.side)
        try:
            return Recording(self, self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)


@cache
def device() -> Device:
    """The device of this process.

    Raises:
        MRCError: there is none, or what calls it is not installed.
    """
    return Device()
