// Sums over all pixels for batch norm and its gradient, as XLA custom calls: one pass over the activations,
// where XLA on a CPU writes each product to memory before it sums it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace ffi = xla::ffi;
using binwrn::Parallel;

namespace {

// Values of a block: it stays in the cache for its second pass. Blocks depend on the shape alone, and
// so do the bits of the result.
constexpr int64_t kBlock = 16384;

struct BFloat16 {
  uint16_t bits;
};

inline __attribute__((always_inline)) float Value(float x) { return x; }

inline __attribute__((always_inline)) float Value(BFloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Mean and sum of squared distances from it, by channel, of a block of `rows` pixels.
template <typename X>
inline __attribute__((always_inline)) void SumBlock(const X* __restrict__ x, int64_t rows, int64_t channels,
                                                    float* __restrict__ mean, float* __restrict__ squares) {
  std::fill(mean, mean + channels, 0.0f);
  std::fill(squares, squares + channels, 0.0f);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < channels; c++) mean[c] += Value(x[r * channels + c]);
  for (int64_t c = 0; c < channels; c++) mean[c] /= static_cast<float>(rows);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < channels; c++) {
      float distance = Value(x[r * channels + c]) - mean[c];
      squares[c] += distance * distance;
    }
}

// Sums of g and of g (x - mean), by channel.
template <typename G, typename X>
inline __attribute__((always_inline)) void MultiplyBlock(const G* __restrict__ g, const X* __restrict__ x,
                                                         const float* __restrict__ mean, int64_t rows, int64_t channels,
                                                         float* __restrict__ sum, float* __restrict__ along) {
  std::fill(sum, sum + channels, 0.0f);
  std::fill(along, along + channels, 0.0f);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < channels; c++) {
      float value = Value(g[r * channels + c]);
      sum[c] += value;
      along[c] += value * (Value(x[r * channels + c]) - mean[c]);
    }
}

// A template cannot be compiled for several processors, so these are written out.
FOR_EACH_PROCESSOR void BlockMoments(const float* x, int64_t rows, int64_t channels, float* mean, float* squares) {
  SumBlock(x, rows, channels, mean, squares);
}

FOR_EACH_PROCESSOR void BlockMoments(const BFloat16* x, int64_t rows, int64_t channels, float* mean, float* squares) {
  SumBlock(x, rows, channels, mean, squares);
}

FOR_EACH_PROCESSOR void BlockProducts(const float* g, const float* x, const float* mean, int64_t rows, int64_t channels,
                                      float* sum, float* along) {
  MultiplyBlock(g, x, mean, rows, channels, sum, along);
}

FOR_EACH_PROCESSOR void BlockProducts(const float* g, const BFloat16* x, const float* mean, int64_t rows,
                                      int64_t channels, float* sum, float* along) {
  MultiplyBlock(g, x, mean, rows, channels, sum, along);
}

FOR_EACH_PROCESSOR void BlockProducts(const BFloat16* g, const float* x, const float* mean, int64_t rows,
                                      int64_t channels, float* sum, float* along) {
  MultiplyBlock(g, x, mean, rows, channels, sum, along);
}

FOR_EACH_PROCESSOR void BlockProducts(const BFloat16* g, const BFloat16* x, const float* mean, int64_t rows,
                                      int64_t channels, float* sum, float* along) {
  MultiplyBlock(g, x, mean, rows, channels, sum, along);
}

using Array = ffi::AnyBuffer;
using Sums = ffi::Buffer<ffi::F32>;

// Images [N, H, W, channels] in groups of as many each, cut into blocks of rows; sums are [groups, 1, 1, channels].
struct Blocks {
  int64_t groups, channels, rows, block, count;

  Blocks(const Array& x, const Sums& of_groups) {
    auto shape = x.dimensions();
    groups = of_groups.dimensions().front();
    channels = shape.back();
    rows = shape[0] * shape[1] * shape[2] / groups;
    block = std::max<int64_t>(1, kBlock / channels);
    count = (rows + block - 1) / block;
  }

  // work(group, block of it, first row, rows) for all blocks.
  template <typename Work>
  void ForEach(ffi::ThreadPool& pool, const Work& work) const {
    const int64_t all = groups * count, parts = std::min<int64_t>(all, 8 * std::max<int64_t>(pool.num_threads(), 1));
    Parallel(pool, parts, [&](int64_t part) {
      auto [first, number] = binwrn::Part(all, parts, part);
      for (int64_t i = first; i < first + number; i++) {
        int64_t begin = i % count * block;
        work(i / count, i % count, begin, std::min(block, rows - begin));
      }
    });
  }
};

template <typename X>
ffi::Error MomentsOf(ffi::ThreadPool& pool, const Array& x, Sums& mean, Sums& variance) {
  try {
    const Blocks b(x, mean);
    const int64_t c = b.channels;
    std::vector<float> means(b.groups * b.count * c), squares(b.groups * b.count * c);
    const X* data = static_cast<const X*>(x.untyped_data());
    b.ForEach(pool, [&](int64_t group, int64_t i, int64_t first, int64_t rows) {
      int64_t at = (group * b.count + i) * c;
      BlockMoments(data + (group * b.rows + first) * c, rows, c, &means[at], &squares[at]);
    });
    // Blocks merged as by Chan, Golub and LeVeque: nothing large is subtracted from something large.
    std::vector<double> total(c), distance(c);
    for (int64_t group = 0; group < b.groups; group++) {
      std::fill(total.begin(), total.end(), 0.0);
      std::fill(distance.begin(), distance.end(), 0.0);
      for (int64_t i = 0; i < b.count; i++) {
        const double before = static_cast<double>(i * b.block);
        const double rows = static_cast<double>(std::min(b.block, b.rows - i * b.block)), all = before + rows;
        for (int64_t k = 0; k < c; k++) {
          int64_t at = (group * b.count + i) * c + k;
          double gap = means[at] - total[k];
          total[k] += gap * rows / all;
          distance[k] += squares[at] + gap * gap * before * rows / all;
        }
      }
      for (int64_t k = 0; k < c; k++) {
        mean.typed_data()[group * c + k] = static_cast<float>(total[k]);
        variance.typed_data()[group * c + k] = static_cast<float>(distance[k] / static_cast<double>(b.rows));
      }
    }
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(e.what());
  }
}

template <typename G, typename X>
ffi::Error ProductsOf(ffi::ThreadPool& pool, const Array& g, const Array& x, const Sums& mean, Sums& sum, Sums& along) {
  try {
    const Blocks b(x, mean);
    const int64_t c = b.channels;
    std::vector<float> sums(b.groups * b.count * c), alongs(b.groups * b.count * c);
    const G* pg = static_cast<const G*>(g.untyped_data());
    const X* px = static_cast<const X*>(x.untyped_data());
    const float* pm = mean.typed_data();
    b.ForEach(pool, [&](int64_t group, int64_t i, int64_t first, int64_t rows) {
      int64_t at = (group * b.count + i) * c, from = (group * b.rows + first) * c;
      BlockProducts(pg + from, px + from, pm + group * c, rows, c, &sums[at], &alongs[at]);
    });
    std::vector<double> totals(2 * c);
    for (int64_t group = 0; group < b.groups; group++) {
      std::fill(totals.begin(), totals.end(), 0.0);
      for (int64_t i = 0; i < b.count; i++)
        for (int64_t k = 0; k < c; k++) {
          totals[k] += sums[(group * b.count + i) * c + k];
          totals[c + k] += alongs[(group * b.count + i) * c + k];
        }
      for (int64_t k = 0; k < c; k++) {
        sum.typed_data()[group * c + k] = static_cast<float>(totals[k]);
        along.typed_data()[group * c + k] = static_cast<float>(totals[c + k]);
      }
    }
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(e.what());
  }
}

ffi::Error Moments(ffi::ThreadPool pool, Array x, ffi::Result<Sums> mean, ffi::Result<Sums> variance) {
  if (x.element_type() == ffi::F32) return MomentsOf<float>(pool, x, *mean, *variance);
  if (x.element_type() == ffi::BF16) return MomentsOf<BFloat16>(pool, x, *mean, *variance);
  return ffi::Error::InvalidArgument("moments of something else than float32 or bfloat16");
}

ffi::Error Products(ffi::ThreadPool pool, Array g, Array x, Sums mean, ffi::Result<Sums> sum, ffi::Result<Sums> along) {
  const auto of_g = g.element_type(), of_x = x.element_type();
  if (of_g == ffi::F32 && of_x == ffi::F32) return ProductsOf<float, float>(pool, g, x, mean, *sum, *along);
  if (of_g == ffi::F32 && of_x == ffi::BF16) return ProductsOf<float, BFloat16>(pool, g, x, mean, *sum, *along);
  if (of_g == ffi::BF16 && of_x == ffi::F32) return ProductsOf<BFloat16, float>(pool, g, x, mean, *sum, *along);
  if (of_g == ffi::BF16 && of_x == ffi::BF16) return ProductsOf<BFloat16, BFloat16>(pool, g, x, mean, *sum, *along);
  return ffi::Error::InvalidArgument("products of something else than float32 and bfloat16");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_moments, Moments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Sums>().Ret<Sums>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(binwrn_products, Products,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Sums>()
                                  .Ret<Sums>()
                                  .Ret<Sums>());
