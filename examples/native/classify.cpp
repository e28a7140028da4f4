// Names what is on a raw image with a packed file, in C++: the golden image of the file where no image is given.
//
//   c++ -std=c++17 classify.cpp $(pkg-config --cflags --libs binwrn) -o classify
//   ./classify model.packed [image.raw]
#include <binwrn.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Free {
  void operator()(binwrn_model *model) const { binwrn_free(model); }
};
using Model = std::unique_ptr<binwrn_model, Free>;

Model load(const char *path) {
  binwrn_options options = {};
  options.threads = 2;
  binwrn_model *model = nullptr;
  char message[BINWRN_MESSAGE];
  if (binwrn_load_file(path, &options, &model, message) != BINWRN_OK)
    throw std::runtime_error(std::string(path) + ": " + message);
  return Model(model);
}

std::vector<std::uint8_t> read(const char *path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

int main(int argc, char **argv) try {
  if (argc < 2 || argc > 3) throw std::runtime_error("usage: classify MODEL.packed [IMAGE.raw]");
  const Model model = load(argv[1]);
  const binwrn_description &d = *binwrn_describe(model.get());
  const std::size_t size = static_cast<std::size_t>(d.height) * d.width * d.channels;
  const std::vector<std::uint8_t> image =
      argc == 3 ? read(argv[2]) : std::vector<std::uint8_t>(d.golden_image, d.golden_image + size);
  if (image.size() != size) throw std::runtime_error("the image has not the size of the model's");
  std::vector<float> logits(static_cast<std::size_t>(d.classes));
  const binwrn_error error = binwrn_run(model.get(), image.data(), 1, logits.data());
  if (error != BINWRN_OK) throw std::runtime_error(binwrn_error_name(error));
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  std::cout << best << ' ' << (d.class_names ? d.class_names[best] : "-") << '\n';
} catch (const std::exception &problem) {
  std::cerr << "error: " << problem.what() << '\n';
  return 2;
}
