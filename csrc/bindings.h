// The Python functions of a table of kernels. Each takes one `bytes`: a packed struct of addresses, sizes and options.
// They know no tensor type, so one binary serves every torch version. The GIL is released for the length of a call.
//
// Every field of a struct is packed in 8 bytes, in its order: numbers as double, all else as an integer of 64 bits. Of
// each function `layouts` has the format and the names, as Python's `struct` takes them.
#pragma once
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "calls.h"

namespace esvae {

// Calls visit(name, field) for each field of a struct, and in the place of a struct or an array for what it holds.
template <class Visit>
struct EachField {
  Visit visit;

  template <class T>
  void operator()(const char* name, T& field) {
    visit(name, field);
  }
  void operator()(const char*, Numbers& numbers) {
    for (int k = 0; k < kParameters; ++k) visit(kParameterNames[k], numbers[k]);
  }
  void operator()(const char*, Place& place) { place.fields(*this); }
};

template <class Struct, class Visit>
void each_field(Struct& s, Visit visit) {
  s.fields(EachField<Visit&>{visit});
}

// A field's code in a format of Python's `struct`.
template <class T>
constexpr char code() {
  return std::is_pointer_v<T> ? 'Q' : std::is_floating_point_v<T> ? 'd' : 'q';
}

template <class T>
void take(T& field, const char* packed) {
  using Packed = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;
  Packed value;
  std::memcpy(&value, packed, sizeof value);
  if constexpr (std::is_pointer_v<T>)
    field = reinterpret_cast<T>(static_cast<uintptr_t>(value));
  else
    field = static_cast<T>(value);
}

template <class Struct>
struct Layout {
  std::string format = "=";
  std::vector<const char*> names;

  Layout() {
    Struct s{};
    each_field(s, [this](const char* name, auto& field) {
      format += code<std::decay_t<decltype(field)>>();
      names.push_back(name);
    });
  }
};

template <class Struct>
Struct unpack(const char* name, const pybind11::bytes& packed) {
  static const size_t bytes = 8 * Layout<Struct>().names.size();
  const std::string_view given(packed);
  if (given.size() != bytes)
    throw pybind11::value_error(std::string(name) + ": got " + std::to_string(given.size()) + " bytes, accepted are " +
                                std::to_string(bytes));
  Struct s{};
  const char* at = given.data();
  each_field(s, [&at](const char*, auto& field) { take(field, at), at += 8; });
  return s;
}

template <class Table, class Result, class Struct>
void define_kernel(pybind11::module_& m, const Table& (*kernels)(), const char* name,
                   Result (*Table::*kernel)(const Struct&)) {
  m.def(name, [kernels, kernel, name](const pybind11::bytes& packed) {
    const Struct call = unpack<Struct>(name, packed);
    pybind11::gil_scoped_release release;
    return (kernels().*kernel)(call);
  });
  const Layout<Struct> layout;
  pybind11::tuple names(layout.names.size());
  for (size_t k = 0; k < layout.names.size(); ++k) names[k] = layout.names[k];
  m.attr("layouts")[name] = pybind11::make_tuple(layout.format, names);
}

// Defines in `m` what calls the functions of `kernels()`.
template <class Table>
void define_kernels(pybind11::module_& m, const Table& (*kernels)()) {
  m.attr("layouts") = pybind11::dict();
#define ESVAE_DEFINE(Result, name, Argument) \
  define_kernel(m, kernels, #name, static_cast<Result (*Table::*)(Argument)>(&Table::name));
  ESVAE_KERNELS(ESVAE_DEFINE)
  if constexpr (std::is_same_v<Table, CpuKernels>) {
    ESVAE_CPU_KERNELS(ESVAE_DEFINE)
  }
#undef ESVAE_DEFINE
}

}  // namespace esvae
