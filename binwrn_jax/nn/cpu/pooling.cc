// Average pooling and its gradient by oneDNN, as XLA custom calls: NHWC, float32 or bfloat16. The average is of
// the pixels inside the image.

#include <algorithm>
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
using binwrn::CommonType;
using binwrn::Engine;
using binwrn::OneThread;
using binwrn::Parallel;
using binwrn::Part;
using dnnl::memory;

namespace {

struct Primitive {
  dnnl::primitive run;
  memory::desc images, result;
};

struct Window {
  memory::dims size, strides, before, after;
};

// For a part of a batch: so many images of this shape.
std::shared_ptr<const Primitive> Get(bool forward, const memory::dims& images, const memory::dims& result,
                                     const Window& w, memory::data_type type) {
  static std::mutex* mutex = new std::mutex;
  static auto* cache = new std::map<std::vector<memory::dims>, std::shared_ptr<const Primitive>>;
  std::lock_guard<std::mutex> lock(*mutex);
  auto& entry = (*cache)[{{forward, static_cast<int64_t>(type)}, images, result, w.size, w.strides, w.before, w.after}];
  if (entry) return entry;
  OneThread one;
  auto p = std::make_shared<Primitive>();
  p->images = {images, type, memory::format_tag::nhwc};
  p->result = {result, type, memory::format_tag::nhwc};
  const auto average = dnnl::algorithm::pooling_avg_exclude_padding;
  const memory::dims dilation{0, 0};
  dnnl::pooling_forward::primitive_desc there(Engine(), dnnl::prop_kind::forward_training, average, p->images,
                                              p->result, w.strides, w.size, dilation, w.before, w.after);
  if (forward)
    p->run = dnnl::pooling_forward(there);
  else
    p->run = dnnl::pooling_backward(dnnl::pooling_backward::primitive_desc(
        Engine(), average, p->images, p->result, w.strides, w.size, dilation, w.before, w.after, there));
  entry = p;
  return p;
}

using Array = ffi::AnyBuffer;
using Numbers = ffi::Span<const int64_t>;

ffi::Error Run(bool forward, ffi::ThreadPool pool, const Array& images, const Array& result, Numbers size,
               Numbers strides, Numbers pads) {
  try {
    const memory::data_type type = CommonType(images, result);
    auto x = images.dimensions(), y = result.dimensions();
    const Window window{{size[0], size[1]}, {strides[0], strides[1]}, {pads[0], pads[2]}, {pads[1], pads[3]}};
    const int64_t bytes = memory::data_type_size(type), n = x[0];
    const int64_t image = x[1] * x[2] * x[3] * bytes, map = y[1] * y[2] * y[3] * bytes;
    char *px = static_cast<char*>(images.untyped_data()), *py = static_cast<char*>(result.untyped_data());
    const int64_t parts = std::min(n, 4 * std::max<int64_t>(pool.num_threads(), 1));
    Parallel(pool, parts, [&](int64_t i) {
      auto [first, count] = Part(n, parts, i);
      auto p = Get(forward, {count, x[3], x[1], x[2]}, {count, y[3], y[1], y[2]}, window, type);
      OneThread one;
      dnnl::stream stream(Engine());
      p->run.execute(stream, {{forward ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC, memory(p->images, Engine(), px + first * image)},
                              {forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, memory(p->result, Engine(), py + first * map)}});
      stream.wait();
    });
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("oneDNN: ") + e.what());
  }
}

ffi::Error Forward(ffi::ThreadPool pool, Array images, ffi::Result<Array> result, Numbers size, Numbers strides, Numbers pads) {
  return Run(true, pool, images, *result, size, strides, pads);
}

ffi::Error Gradient(ffi::ThreadPool pool, Array result, ffi::Result<Array> images, Numbers size, Numbers strides, Numbers pads) {
  return Run(false, pool, *images, result, size, strides, pads);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<Numbers>("window")
      .Attr<Numbers>("strides")
      .Attr<Numbers>("pads");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_pool_forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_pool_gradient, Gradient, Binding());
