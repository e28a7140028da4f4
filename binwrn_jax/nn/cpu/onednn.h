// What the custom calls by oneDNN share.

#pragma once

#include <stdexcept>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

#if DNNL_CPU_RUNTIME == DNNL_RUNTIME_OMP
// From the library that oneDNN itself is linked to, be it libgomp or libomp.
extern "C" void omp_set_num_threads(int);
extern "C" int omp_get_max_threads(void);
#elif DNNL_CPU_RUNTIME != DNNL_RUNTIME_SEQ
#error "a oneDNN with the OpenMP or the sequential runtime is needed"
#endif

namespace binwrn {

// oneDNN takes the number of threads from the calling thread's OpenMP setting.
class OneThread {
 public:
#if DNNL_CPU_RUNTIME == DNNL_RUNTIME_OMP
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
#endif
};

inline const dnnl::engine& Engine() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// The type of buffers that must all have the same one.
template <typename... Others>
dnnl::memory::data_type CommonType(const xla::ffi::AnyBuffer& first, const Others&... others) {
  const xla::ffi::DataType type = first.element_type();
  if (!((others.element_type() == type) && ...)) throw std::invalid_argument("operands of several types");
  if (type == xla::ffi::DataType::F32) return dnnl::memory::data_type::f32;
  if (type == xla::ffi::DataType::BF16) return dnnl::memory::data_type::bf16;
  throw std::invalid_argument("operands that are neither float32 nor bfloat16");
}

}  // namespace binwrn
