// What the custom calls of this folder share: threads and memory.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace binwrn {

namespace ffi = xla::ffi;

// Buffers that outlive a call: pages fresh from the system would cost more than some convolutions.
class Buffers {
 public:
  static std::shared_ptr<char> Take(size_t bytes) {
    static Buffers* buffers = new Buffers;
    Item item = buffers->Find(bytes);
    return {item.data, [item](char*) {
              std::lock_guard<std::mutex> lock(buffers->mutex_);
              buffers->free_.push_back(item);
            }};
  }

 private:
  struct Item {
    size_t bytes;
    char* data;
  };

  Item Find(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t best = free_.size(), largest = free_.size();
    for (size_t i = 0; i < free_.size(); i++) {
      if (free_[i].bytes >= bytes && (best == free_.size() || free_[i].bytes < free_[best].bytes)) best = i;
      if (largest == free_.size() || free_[i].bytes > free_[largest].bytes) largest = i;
    }
    if (best < free_.size()) {
      Item item = free_[best];
      free_.erase(free_.begin() + best);
      return item;
    }
    if (largest < free_.size()) {  // too small: grows, so that there are never more than were in use at once
      std::free(free_[largest].data);
      free_.erase(free_.begin() + largest);
    }
    bytes = (bytes + 4095) / 4096 * 4096;
    char* data = static_cast<char*>(std::aligned_alloc(4096, std::max<size_t>(bytes, 4096)));
    if (!data) throw std::bad_alloc();
    return {bytes, data};
  }

  std::mutex mutex_;
  std::vector<Item> free_;
};

// Runs work(0), ..., work(count - 1), each once, on the caller's thread and those of the pool.
template <typename Work>
void Parallel(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int64_t done = 0;
    std::string error;
  };
  auto shared = std::make_shared<Shared>();
  // A thread of the pool may come when all is done and `work` is gone: it then finds no index and touches nothing.
  auto run = [shared, count, &work] {
    for (int64_t i; (i = shared->next++) < count;) {
      std::string error;
      try {
        work(i);
      } catch (const std::exception& e) {
        error = e.what();
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (!error.empty()) shared->error = error;
      if (++shared->done == count) shared->finished.notify_all();
    }
  };
  for (int64_t i = 1; i < std::min<int64_t>(count, pool.num_threads()); i++) {
    auto task = run;
    pool.Schedule(std::move(task));
  }
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == count; });
  if (!shared->error.empty()) throw std::runtime_error(shared->error);
}

// The part i of `parts` of a range: where it begins, and its length.
inline std::pair<int64_t, int64_t> Part(int64_t size, int64_t parts, int64_t i) {
  int64_t first = size * i / parts;
  return {first, size * (i + 1) / parts - first};
}

}  // namespace binwrn
