// The pack: chooses the code for the current GPU, loads it once and launches it. kernels/build_pack.py writes what
// Triton compiled to two files: `cubins.bin`, and its table, `cubins.inc`.

#include "mrc_cuda.h"

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_driver.h"

// .incbin is quick; an array of as many bytes would take a minute to compile
asm(".pushsection .rodata\n"
    ".balign 64\n"
    ".global mrc_cubins\n.hidden mrc_cubins\n"
    "mrc_cubins: .incbin \"" MRC_CUBINS "\"\n"
    ".popsection\n");
extern "C" const unsigned char mrc_cubins[] __attribute__((visibility("hidden")));

namespace {

enum Kernel { REWARD_BLOCK, REWARD_STATISTICS, GROUP_NORM_SILU, SAMPLER_STEP };

struct Cubin {
  Kernel kernel;
  int32_t type;
  int capability;        // 10 × major + minor
  bool exact;            // runs on this capability only; if false, on greater minor versions too
  int64_t width;         // channels of the reward block, or most channels in a group of a norm
  bool optional;         // has the bias or the fresh noise
  const char* function;
  int64_t block;         // positions or values a program of the grid takes
  unsigned threads, shared;
  size_t offset;         // into mrc_cubins
};

#include "cubins.inc"  // constexpr Cubin cubins[]; constexpr const char* parameters[], by Kernel

constexpr int64_t kMost = INT32_MAX;  // the kernels count in 32 bits within a feature map

// The code for the nearest capability, and the narrowest of it, which the table has first.
const Cubin* choose(Kernel kernel, int32_t type, int64_t width, bool optional, int capability) {
  const Cubin* best = nullptr;
  for (const Cubin& cubin : cubins) {
    if (cubin.kernel != kernel || cubin.type != type || cubin.optional != optional) continue;
    const bool runs = cubin.capability == capability || (!cubin.exact && cubin.capability < capability &&
                                                         cubin.capability / 10 == capability / 10);
    const bool fits = kernel == REWARD_BLOCK ? cubin.width == width : cubin.width >= width;
    if (runs && fits && (!best || cubin.capability > best->capability)) best = &cubin;
  }
  return best;
}

// The current context's device and its compute capability.
int current_device(int* device, int* capability) {
  const Driver& cuda = cuda_driver();
  if (cuda.status) return cuda.status;
  int major = 0, minor = 0;
  int error = cuda.cuCtxGetDevice(device);
  if (error == kInvalidContext) return MRC_CUDA_NO_CONTEXT;
  if (!error) error = cuda.cuDeviceGetAttribute(&major, kCapabilityMajor, *device);
  if (!error) error = cuda.cuDeviceGetAttribute(&minor, kCapabilityMinor, *device);
  *capability = 10 * major + minor;
  return error ? MRC_CUDA_DRIVER + error : MRC_OK;
}

// The kernel of a cubin on a device. A CUlibrary's kernels work in all contexts of the device.
int load(const Cubin& cubin, int device, void** kernel) {
  static std::mutex mutex;
  static std::map<std::pair<const Cubin*, int>, void*> loaded;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = loaded.find({&cubin, device});
  if (entry != loaded.end()) {
    *kernel = entry->second;
    return MRC_OK;
  }
  const Driver& cuda = cuda_driver();
  void* library = nullptr;
  int error = cuda.cuLibraryLoadData(&library, mrc_cubins + cubin.offset, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (!error) error = cuda.cuLibraryGetKernel(kernel, library, cubin.function);
  if (!error) error = cuda.cuKernelSetAttribute(kMaxDynamicSharedSize, static_cast<int>(cubin.shared), *kernel, device);
  if (error) return MRC_CUDA_DRIVER + error;
  loaded[{&cubin, device}] = *kernel;
  return MRC_OK;
}

template <typename T>
constexpr char letter(T*) { return 'p'; }
constexpr char letter(int32_t) { return 'i'; }
constexpr char letter(float) { return 'f'; }

template <typename... Arguments>
constexpr bool takes(const char* letters) {
  const char given[] = {letter(Arguments{})..., '\0'};
  for (size_t i = 0; i < sizeof(given); ++i)
    if (letters[i] != given[i]) return false;
  return true;
}

template <Kernel kernel, typename... Arguments>
int launch_all(const Cubin& cubin, int device, int64_t x, int64_t y, CUstream_st* stream, Arguments... arguments) {
  static_assert(takes<Arguments...>(parameters[kernel]), "the kernel's parameters are not those of Triton 3.9");
  void* function = nullptr;
  if (const int status = load(cubin, device, &function)) return status;
  void* pointers[] = {&arguments...};
  const int error =
      cuda_driver().cuLaunchKernel(function, static_cast<unsigned>(x), static_cast<unsigned>(y), 1, cubin.threads, 1,
                                   1, cubin.shared, stream, pointers, nullptr);
  return error ? MRC_CUDA_DRIVER + error : MRC_OK;
}

// Triton's kernels have two more pointers, to scratch memory and to a profiler's memory; ours use neither.
template <Kernel kernel, typename... Arguments>
int launch(const Cubin& cubin, int device, int64_t x, int64_t y, CUstream_st* stream, Arguments... arguments) {
  void* none = nullptr;
  return launch_all<kernel>(cubin, device, x, y, stream, arguments..., none, none);
}

template <typename... Pointers>
bool missing(Pointers... pointers) { return (... || !pointers); }

template <typename... Pointers>
bool misaligned(Pointers... pointers) { return (reinterpret_cast<uintptr_t>(pointers) | ...) % 16 != 0; }

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

int64_t bytes(int32_t type) { return type == MRC_FLOAT32 ? 4 : 2; }

int check(const mrc_feature_maps* maps) {
  if (!maps) return MRC_NULL_POINTER;
  const auto& m = *maps;
  if (m.count < 1 || m.channels < 1 || m.positions < 1 || m.groups < 1 || m.channels % m.groups || m.type < 0 ||
      m.type > MRC_BFLOAT16 || m.channels > kMost / m.positions || m.channels > kMost / m.count)
    return MRC_BAD_SIZE;
  if (missing(m.input, m.output, m.scale, m.shift)) return MRC_NULL_POINTER;
  if (!m.channels_last) return MRC_CUDA_NOT_IN_PACK;
  if (misaligned(m.input, m.output, m.scale, m.shift)) return MRC_CUDA_BAD_POINTER;
  return MRC_OK;
}

}  // namespace

extern "C" {

const char* mrc_cuda_error_string(int status) {
  switch (status) {
    case MRC_OK: return "no error";
    case MRC_BAD_SIZE: return "a size does not fit";
    case MRC_NULL_POINTER: return "a pointer is missing";
    case MRC_CUDA_NOT_IN_PACK: return "the pack has no code for this GPU, type, width or layout";
    case MRC_CUDA_BAD_POINTER: return "a device pointer is not a multiple of 16 bytes, or the output is the input";
    case MRC_CUDA_NO_DRIVER: return "no CUDA driver: libcuda.so.1 cannot be loaded";
    case MRC_CUDA_OLD_DRIVER: return "the CUDA driver is older than 12.0";
    case MRC_CUDA_NO_CONTEXT: return "no CUDA context is current in this thread; choose a device first";
  }
  const char* text = nullptr;
  if (status > MRC_CUDA_DRIVER && cuda_driver().cuGetErrorString)
    cuda_driver().cuGetErrorString(status - MRC_CUDA_DRIVER, &text);
  return text ? text : "unknown";
}

int mrc_cuda_status(void) { return cuda_driver().status; }

int64_t mrc_cuda_reward_block_workspace(const mrc_feature_maps* maps) {
  // scale and shift of the group norm, and the tiles' scratch
  return maps->count * maps->channels * (8 + maps->positions * bytes(maps->type));
}

int mrc_cuda_reward_block(const mrc_feature_maps* maps, const mrc_cuda_reward_weights* weights, const void* gate,
                          const float* gate_bias, const float* base, const void* update, void* workspace,
                          CUstream_st* stream) {
  if (const int status = check(maps)) return status;
  if (missing(weights, gate, gate_bias, base, update, workspace)) return MRC_NULL_POINTER;
  const auto& m = *maps;
  const auto& w = *weights;
  if (missing(w.proj_in, w.proj_in_bias, w.norm1, w.norm1_bias, w.inner, w.inner_bias, w.outer, w.outer_bias, w.norm2,
              w.norm2_bias, w.proj_out, w.proj_out_bias))
    return MRC_NULL_POINTER;
  if (misaligned(w.proj_in, w.proj_in_bias, w.norm1, w.norm1_bias, w.inner, w.inner_bias, w.outer, w.outer_bias,
                 w.norm2, w.norm2_bias, w.proj_out, w.proj_out_bias, gate, gate_bias, base, update, workspace) ||
      m.output == m.input)
    return MRC_CUDA_BAD_POINTER;
  int device = 0, capability = 0;
  if (const int status = current_device(&device, &capability)) return status;
  const Cubin* statistics = choose(REWARD_STATISTICS, m.type, m.channels / m.groups, false, capability);
  const Cubin* block = choose(REWARD_BLOCK, m.type, m.channels, false, capability);
  if (!statistics || !block) return MRC_CUDA_NOT_IN_PACK;
  if (m.count > UINT16_MAX || m.count > kMost / m.groups) return MRC_BAD_SIZE;  // the grid's limits

  float* scale = static_cast<float*>(workspace);
  float* shift = scale + m.count * m.channels;
  void* scratch = shift + m.count * m.channels;
  const auto positions = static_cast<int32_t>(m.positions), channels = static_cast<int32_t>(m.channels);
  const int status = launch<REWARD_STATISTICS>(*statistics, device, m.count * m.groups, 1, stream, m.input, m.scale,
                                               m.shift, scale, shift, positions, channels, m.groups, channels,
                                               m.epsilon);
  if (status) return status;
  constexpr float kLayerNormEpsilon = 1e-12f;
  return launch<REWARD_BLOCK>(*block, device, blocks(m.positions, block->block), m.count, stream, m.input, m.output,
                              scratch, scale, shift, gate, gate_bias, base, update, w.proj_in, w.proj_in_bias, w.norm1,
                              w.norm1_bias, w.inner, w.inner_bias, w.outer, w.outer_bias, w.norm2, w.norm2_bias,
                              w.proj_out, w.proj_out_bias, positions, channels, kLayerNormEpsilon);
}

int mrc_cuda_group_norm_silu(const mrc_feature_maps* maps, const void* bias, CUstream_st* stream) {
  if (const int status = check(maps)) return status;
  const auto& m = *maps;
  if (misaligned(bias)) return MRC_CUDA_BAD_POINTER;
  if (m.count > kMost / m.groups) return MRC_BAD_SIZE;
  int device = 0, capability = 0;
  if (const int status = current_device(&device, &capability)) return status;
  const Cubin* cubin = choose(GROUP_NORM_SILU, m.type, m.channels / m.groups, bias != nullptr, capability);
  if (!cubin || m.channels % 16) return MRC_CUDA_NOT_IN_PACK;
  const auto positions = static_cast<int32_t>(m.positions), channels = static_cast<int32_t>(m.channels);
  return launch<GROUP_NORM_SILU>(*cubin, device, m.count * m.groups, 1, stream, m.input, m.scale, m.shift,
                                 bias ? bias : m.scale, m.output, positions, channels, m.groups, channels, m.epsilon);
}

int mrc_cuda_sampler_step(int32_t type, const void* noise, float* latents, float* denoised, const float* fresh_noise,
                          int64_t batch, int64_t size, const float* coefficients, const float* denoised_coefficients,
                          const float* input_scale, const int64_t* item, int64_t inputs, void* sample,
                          CUstream_st* stream) {
  if (inputs < 0 || batch < 1 || batch > UINT16_MAX || size < 1 || type < 0 || type > MRC_BFLOAT16 ||
      batch > kMost / size || inputs > kMost / size / 2)
    return MRC_BAD_SIZE;
  if (missing(noise, latents, denoised, coefficients, denoised_coefficients, input_scale, item, sample))
    return MRC_NULL_POINTER;
  if (misaligned(noise, latents, denoised, fresh_noise, sample)) return MRC_CUDA_BAD_POINTER;
  int device = 0, capability = 0;
  if (const int status = current_device(&device, &capability)) return status;
  const Cubin* cubin = choose(SAMPLER_STEP, type, 0, fresh_noise != nullptr, capability);
  if (!cubin || size % 16) return MRC_CUDA_NOT_IN_PACK;
  return launch<SAMPLER_STEP>(*cubin, device, blocks(size, cubin->block), batch, stream, noise, latents, denoised,
                              fresh_noise ? fresh_noise : latents, coefficients, denoised_coefficients, input_scale,
                              item, sample, static_cast<int32_t>(inputs), static_cast<int32_t>(size));
}

}  // extern "C"
