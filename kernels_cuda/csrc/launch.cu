// The kernels by name: the relations, the aggregation, and the cores of the fused attentions.

#include <algorithm>
#include <map>

#include "cores.h"
#include "launch.h"
#include "relations.h"

namespace {

const std::map<std::string, void (*)(const Arrays&, const Lookups&)> OPERATORS = {
    {"pairwise_summation", pairwise_summation},
    {"pairwise_summation_backward", pairwise_summation_backward},
    {"pairwise_subtraction", pairwise_subtraction},
    {"pairwise_subtraction_backward", pairwise_subtraction_backward},
    {"pairwise_hadamard_product", pairwise_hadamard_product},
    {"pairwise_hadamard_product_backward", pairwise_dot_product_backward},
    {"pairwise_concatenation", pairwise_concatenation},
    {"pairwise_concatenation_backward", pairwise_concatenation_backward},
    {"pairwise_dot_product", pairwise_dot_product},
    {"pairwise_dot_product_backward", pairwise_dot_product_backward},
    {"patchwise_star_product", patchwise_star_product},
    {"patchwise_star_product_backward", patchwise_star_product_backward},
    {"patchwise_clique_product", patchwise_clique_product},
    {"patchwise_clique_product_backward", patchwise_clique_product_backward},
    {"patchwise_concatenation", patchwise_concatenation},
    {"patchwise_concatenation_backward", patchwise_concatenation_backward},
    {"aggregation", aggregation},
    {"aggregation_backward", aggregation_backward},
};

struct Entry {
  void (*start)(const Arrays&, const Lookups&, const Core&);
  size_t inputs, outputs;
};

// A core's function, and how many inputs and outputs it has; scratch memory is its last array.
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

// The numbers are the core's variant, whether the softmax skips taps outside, the workers that scratch memory holds
// sums for, and the widths.
Core core_of(const std::string& name, const Entry& entry, const Arrays& arrays, const std::vector<int64_t>& numbers) {
  if (arrays.size() != entry.inputs + entry.outputs + 1 || numbers.size() < 4)
    throw std::invalid_argument(name + " got " + std::to_string(arrays.size()) + " arrays; expected " +
                                std::to_string(entry.inputs + entry.outputs) +
                                " and scratch memory, and 4 numbers at least");
  return {Widths({numbers.begin() + 3, numbers.end()}), static_cast<int>(numbers[0]), numbers[1] != 0,
          static_cast<int>(numbers[2])};
}

// A kernel reads all arrays in the dtype of one of them. Only the parameters and sums of a core may have another dtype,
// that of sums.
void check_types(const std::string& name, const Arrays& arrays, const Arrays& tables, bool core) {
  const auto is_map = [&](const Array& array) { return array.data && (!core || array.sizes.size() == 4); };
  const auto map = std::find_if(arrays.begin(), arrays.end(), is_map);
  if (map == arrays.end()) return;
  const Type sums = map->type == Type::float64 ? Type::float64 : Type::float32;
  for (size_t i = 0; i < arrays.size(); ++i)
    if (arrays[i].data && arrays[i].type != map->type && !(core && arrays[i].type == sums))
      throw std::invalid_argument(name + ": array " + std::to_string(i) + " has another dtype than array " +
                                  std::to_string(map - arrays.begin()) + "; expected the same");
  for (const Array& table : tables)
    if (table.type != Type::int32) throw std::invalid_argument(name + ": a table is not int32; expected int32");
}

}  // namespace

void launch(const std::string& name, const Arrays& arrays, const Arrays& tables, const std::vector<int64_t>& numbers,
            cudaStream_t stream) {
  check_types(name, arrays, tables, OPERATORS.find(name) == OPERATORS.end());
  if (const auto found = OPERATORS.find(name); found != OPERATORS.end())
    return found->second(arrays, lookups_of(tables, numbers, stream));
  const auto end = numbers.begin() + std::min<size_t>(numbers.size(), LOOKUP_NUMBERS);
  const Lookups lookups = lookups_of(tables, {numbers.begin(), end}, stream);
  const auto found = CORES.find(name);
  if (found == CORES.end()) throw std::invalid_argument("there are no kernels of " + name);
  found->second.start(arrays, lookups, core_of(name, found->second, arrays, {end, numbers.end()}));
}
