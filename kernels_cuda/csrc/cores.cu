// The cores by name, and what they are told besides their arrays.

#include <map>

#include "cores.h"

namespace {

// Kernels, inputs and outputs; scratch memory comes last.
struct Entry {
  void (*start)(const Arrays&, const Lookups&, const Core&);
  size_t inputs, outputs;
};

const std::map<std::string, Entry> CORES = {
    {"pairwise_attention", {pairwise_attention, 5, 2}},
    {"pairwise_attention_backward", {pairwise_attention_backward, 8, 5}},
    {"pairwise_statistics", {pairwise_statistics, 4, 2}},
    {"pairwise_statistics_backward", {pairwise_statistics_backward, 7, 4}},
    {"stand_alone_attention", {stand_alone_attention, 4, 2}},
    {"stand_alone_attention_backward", {stand_alone_attention_backward, 7, 4}},
    {"patchwise_attention", {patchwise_attention, 6, 1}},
    {"patchwise_attention_backward", {patchwise_attention_backward, 7, 6}},
    {"patchwise_statistics", {patchwise_statistics, 5, 2}},
    {"patchwise_statistics_backward", {patchwise_statistics_backward, 8, 5}},
};

}  // namespace

bool launch_core(const std::string& name, const Arrays& arrays, const Lookups& at,
                 const std::vector<int64_t>& numbers) {
  const auto found = CORES.find(name);
  if (found == CORES.end()) return false;
  const auto [start, inputs, outputs] = found->second;
  if (arrays.size() != inputs + outputs + 1 || numbers.size() < 4)
    throw std::invalid_argument(name + " got " + std::to_string(arrays.size()) + " arrays; expected " +
                                std::to_string(inputs + outputs) + " and scratch memory, and 4 numbers at least");
  const Core core = {Widths({numbers.begin() + 3, numbers.end()}), static_cast<int>(numbers[0]), numbers[1] != 0,
                     static_cast<int>(numbers[2])};
  start(arrays, at, core);
  return true;
}
