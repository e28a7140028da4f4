// Convolution and both its gradients by oneDNN, as XLA custom calls. Layouts: images NHWC, kernels HWIO; all of
// one call float32 or all bfloat16, which is summed in float32.
//
// XLA's own thread pool works on a batch cut into parts, oneDNN runs each part on one thread: no second pool
// competes for the cores, and the parts, hence the rounding, depend on the pool's size alone.

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "onednn.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using binwrn::Buffers;
using binwrn::CommonType;
using binwrn::Engine;
using binwrn::OneThread;
using binwrn::Parallel;
using binwrn::Part;
using dnnl::memory;

namespace {

struct Shape {
  int64_t n, h, w, cin;       // images
  int64_t fh, fw, cout;       // kernel
  int64_t oh, ow;             // result
  int64_t strides[2], pads[4];  // pads: top, bottom, left, right
  memory::data_type type;

  auto key() const {
    return std::vector<int64_t>{n,          h,          w,       cin,     fh,      fw,      cout,   oh, ow,
                                strides[0], strides[1], pads[0], pads[1], pads[2], pads[3], int64_t(type)};
  }
};

enum Pass { kForward, kInput, kWeights };

// One pass over one number of images.
struct Primitive {
  dnnl::primitive run;
  memory::desc images, kernel, result;  // kernel in the library's own layout
  memory::desc scratch;
};

memory::desc Hwio(const Shape& s, memory::data_type type) {
  return {{s.cout, s.cin, s.fh, s.fw}, type, memory::format_tag::hwio};
}

std::shared_ptr<const Primitive> Get(Pass pass, const Shape& s) {
  static std::mutex* mutex = new std::mutex;
  static auto* cache = new std::map<std::pair<Pass, std::vector<int64_t>>, std::shared_ptr<const Primitive>>;
  std::lock_guard<std::mutex> lock(*mutex);
  auto& entry = (*cache)[{pass, s.key()}];
  if (entry) return entry;

  OneThread one;
  auto p = std::make_shared<Primitive>();
  p->images = {{s.n, s.cin, s.h, s.w}, s.type, memory::format_tag::nhwc};
  p->result = {{s.n, s.cout, s.oh, s.ow}, s.type, memory::format_tag::nhwc};
  memory::desc any({s.cout, s.cin, s.fh, s.fw}, s.type, memory::format_tag::any);
  memory::desc gradient({s.cout, s.cin, s.fh, s.fw}, memory::data_type::f32, memory::format_tag::any);
  memory::dims strides{s.strides[0], s.strides[1]}, before{s.pads[0], s.pads[2]}, after{s.pads[1], s.pads[3]};
  auto direct = dnnl::algorithm::convolution_direct;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::convolution_forward::primitive_desc forward(Engine(), dnnl::prop_kind::forward_training, direct, p->images,
                                                    any, p->result, strides, before, after, attributes);
  if (pass == kForward) {
    p->run = dnnl::convolution_forward(forward);
    p->kernel = forward.weights_desc();
    p->scratch = forward.scratchpad_desc();
  } else if (pass == kInput) {
    dnnl::convolution_backward_data::primitive_desc d(Engine(), direct, p->images, any, p->result, strides, before,
                                                      after, forward, attributes);
    p->run = dnnl::convolution_backward_data(d);
    p->kernel = d.weights_desc();
    p->scratch = d.scratchpad_desc();
  } else {
    dnnl::convolution_backward_weights::primitive_desc d(Engine(), direct, p->images, gradient, p->result, strides,
                                                         before, after, forward, attributes);
    p->run = dnnl::convolution_backward_weights(d);
    p->kernel = d.diff_weights_desc();
    p->scratch = d.scratchpad_desc();
  }
  entry = p;
  return p;
}

void Reorder(const memory::desc& from, const void* source, const memory::desc& to, void* target) {
  OneThread one;
  dnnl::stream stream(Engine());
  memory a(from, Engine(), const_cast<void*>(source)), b(to, Engine(), target);
  dnnl::reorder(a, b).execute(stream, a, b);
  stream.wait();
}

void Execute(Pass pass, const Primitive& p, const char* images, const void* kernel, const char* result) {
  OneThread one;
  dnnl::stream stream(Engine());
  auto scratch = Buffers::Take(p.scratch.get_size());
  auto bind = [](const memory::desc& desc, const void* data) {
    return memory(desc, Engine(), const_cast<void*>(data));
  };
  const bool forward = pass == kForward;
  p.run.execute(stream, {{pass == kInput ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, bind(p.images, images)},
                         {pass == kWeights ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, bind(p.kernel, kernel)},
                         {forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, bind(p.result, result)},
                         {DNNL_ARG_SCRATCHPAD, bind(p.scratch, scratch.get())}});
  stream.wait();
}

Shape Sized(Shape s, int64_t n) {
  s.n = n;
  return s;
}

using Array = ffi::AnyBuffer;

ffi::Error Run(Pass pass, ffi::ThreadPool pool, const Array& images, const Array& kernel, const Array& result,
               ffi::Span<const int64_t> strides, ffi::Span<const int64_t> pads) {
  auto x = images.dimensions(), k = kernel.dimensions(), y = result.dimensions();
  const char *px = static_cast<const char*>(images.untyped_data()), *py = static_cast<const char*>(result.untyped_data());
  void* pk = kernel.untyped_data();
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  try {
    const Shape s{x[0], x[1], x[2], x[3], k[0], k[1], k[3], y[1], y[2], {strides[0], strides[1]},
                  {pads[0], pads[1], pads[2], pads[3]}, CommonType(images, kernel, result)};
    const int64_t bytes = memory::data_type_size(s.type);
    const int64_t image = s.h * s.w * s.cin * bytes, map = s.oh * s.ow * s.cout * bytes;
    if (s.n == 0) {
      if (pass == kWeights) std::memset(pk, 0, kernel.size_bytes());
      return ffi::Error::Success();
    }
    if (pass != kWeights) {
      const int64_t parts = std::min(s.n, 4 * threads);
      const memory::desc own = Get(pass, Sized(s, Part(s.n, parts, 0).second))->kernel;
      auto blocked = Buffers::Take(own.get_size());
      Reorder(Hwio(s, s.type), pk, own, blocked.get());
      Parallel(pool, parts, [&](int64_t i) {
        auto [first, count] = Part(s.n, parts, i);
        auto p = Get(pass, Sized(s, count));
        const void* weights = blocked.get();
        std::shared_ptr<char> other;
        if (p->kernel != own) {  // the last part is smaller by one image and may want another layout
          other = Buffers::Take(p->kernel.get_size());
          Reorder(Hwio(s, s.type), pk, p->kernel, other.get());
          weights = other.get();
        }
        Execute(pass, *p, px + first * image, weights, py + first * map);
      });
      return ffi::Error::Success();
    }
    const int64_t parts = std::min(s.n, threads), size = s.fh * s.fw * s.cin * s.cout;
    const memory::desc sum = Hwio(s, memory::data_type::f32);
    auto buffer = Buffers::Take(parts * size * sizeof(float));
    float* sums = reinterpret_cast<float*>(buffer.get());
    const bool rounded = s.type != memory::data_type::f32;
    float* total = rounded ? sums : static_cast<float*>(pk);
    Parallel(pool, parts, [&](int64_t i) {
      auto [first, count] = Part(s.n, parts, i);
      auto p = Get(pass, Sized(s, count));
      auto own = Buffers::Take(p->kernel.get_size());
      Execute(pass, *p, px + first * image, own.get(), py + first * map);
      Reorder(p->kernel, own.get(), sum, parts == 1 ? total : sums + i * size);
    });
    if (parts > 1) {
      Parallel(pool, threads, [&](int64_t i) {
        auto [first, count] = Part(size, threads, i);
        for (int64_t j = first; j < first + count; j++) {
          float value = sums[j];
          for (int64_t part = 1; part < parts; part++) value += sums[part * size + j];
          total[j] = value;
        }
      });
    }
    if (rounded) Reorder(sum, total, Hwio(s, s.type), pk);
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("oneDNN: ") + e.what());
  }
}

ffi::Error Forward(ffi::ThreadPool pool, Array images, Array kernel, ffi::Result<Array> result, ffi::Span<const int64_t> strides,
                   ffi::Span<const int64_t> pads) {
  return Run(kForward, pool, images, kernel, *result, strides, pads);
}

ffi::Error InputGradient(ffi::ThreadPool pool, Array result, Array kernel, ffi::Result<Array> images, ffi::Span<const int64_t> strides,
                         ffi::Span<const int64_t> pads) {
  return Run(kInput, pool, *images, kernel, result, strides, pads);
}

ffi::Error WeightGradient(ffi::ThreadPool pool, Array images, Array result, ffi::Result<Array> kernel, ffi::Span<const int64_t> strides,
                          ffi::Span<const int64_t> pads) {
  return Run(kWeights, pool, images, *kernel, result, strides, pads);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<ffi::Span<const int64_t>>("strides")
      .Attr<ffi::Span<const int64_t>>("pads");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_conv_forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_conv_input_gradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_conv_weight_gradient, WeightGradient, Binding());

// Whether the processor multiplies bfloat16 (AVX512_BF16, AMX); elsewhere float32 is the faster one.
extern "C" int binwrn_multiplies_bfloat16() {
  const auto needed = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}
