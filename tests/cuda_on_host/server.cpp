// Calls `launch` for host.py: reads requests from stdin and writes answers to stdout, until stdin ends. With an
// argument, each array begins one element after an address that vectors are aligned to.
//
// Words are int64. A request is: the length of the name in bytes, and how many arrays, tables and numbers follow; the
// name; the numbers; for each array, then for each table, its Type, its number of axes, its sizes and its elements. The
// answer is −1 and the elements of all arrays and tables after the call, or the length of an error message and the
// message.

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "launch.h"

namespace {

struct Stored {
  Array array;
  size_t bytes;
  std::unique_ptr<unsigned char[]> memory;  // exactly the elements, for AddressSanitizer
};

size_t size_of(Type type) {
  switch (type) {
    case Type::float64:
      return 8;
    case Type::float32:
      return 4;
    case Type::float16:
      return 2;
    case Type::bfloat16:
      return 2;
    case Type::int32:
      return 4;
  }
  throw std::runtime_error("no such type");
}

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("the request is incomplete");
}

std::vector<int64_t> read_words(size_t count) {
  std::vector<int64_t> words(count);
  read(words.data(), count * sizeof(int64_t));
  return words;
}

bool shifted = false;

std::vector<Stored> read_arrays(size_t count) {
  std::vector<Stored> arrays(count);
  for (auto& [array, bytes, memory] : arrays) {
    const auto head = read_words(2);
    array.type = static_cast<Type>(head[0]);
    array.sizes = read_words(head[1]);
    bytes = size_of(array.type);
    for (int64_t size : array.sizes) bytes *= size;
    if (!bytes) continue;
    const size_t shift = shifted ? size_of(array.type) : 0;
    memory = std::make_unique_for_overwrite<unsigned char[]>(shift + bytes);
    array.data = memory.get() + shift;
    read(array.data, bytes);
  }
  return arrays;
}

std::vector<Array> arrays_of(const std::vector<Stored>& stored) {
  std::vector<Array> arrays;
  for (const Stored& one : stored) arrays.push_back(one.array);
  return arrays;
}

void write(const void* from, size_t bytes, FILE* to) {
  if (std::fwrite(from, 1, bytes, to) != bytes) throw std::runtime_error("nobody reads the answer");
}

void write_word(int64_t word, FILE* to) { write(&word, sizeof word, to); }

void answer(const std::vector<int64_t>& head, FILE* to) {
  std::string name(head[0], '\0');
  read(name.data(), name.size());
  const auto numbers = read_words(head[3]);
  const auto arrays = read_arrays(head[1]), tables = read_arrays(head[2]);
  try {
    launch(name, arrays_of(arrays), arrays_of(tables), numbers, nullptr);
  } catch (const std::exception& error) {
    const std::string message = error.what();
    write_word(static_cast<int64_t>(message.size()), to);
    write(message.data(), message.size(), to);
    return;
  }
  write_word(-1, to);
  for (const auto* all : {&arrays, &tables})
    for (const Stored& one : *all)
      if (one.bytes) write(one.array.data, one.bytes, to);
}

}  // namespace

int main(int count, char**) {
  shifted = count > 1;
  FILE* to = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);  // kernels may print
  for (std::vector<int64_t> head(4); std::fread(head.data(), sizeof(int64_t), 4, stdin) == 4;) {
    answer(head, to);
    std::fflush(to);
  }
  std::fclose(to);
}
