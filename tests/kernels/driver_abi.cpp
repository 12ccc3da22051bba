// Compiles if cuda_driver.h declares the driver's functions and numbers as cuda.h does.
#include <cuda.h>

#include <type_traits>

#include "cuda_driver.h"

template <typename A, typename B>
constexpr bool same_argument = sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;

template <typename A, typename B>
constexpr bool same = false;
template <typename A, typename... As, typename B, typename... Bs>
constexpr bool same<A (*)(As...), B (*)(Bs...)> = [] {
  if constexpr (sizeof...(As) == sizeof...(Bs)) return same_argument<A, B> && (... && same_argument<As, Bs>);
  return false;
}();

#define CHECK(name, ...) static_assert(same<decltype(&::name), decltype(Driver::name)>, #name);
MRC_DRIVER_FUNCTIONS(CHECK)
static_assert(kInvalidContext == CUDA_ERROR_INVALID_CONTEXT);
static_assert(kCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kMaxDynamicSharedSize == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);

int main() { return cuda_driver().status; }
