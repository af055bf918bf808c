// A row program: a neuron's step, or its adjoint, as a short list of instructions on rows, each row one value per neuron
// of a piece. It comes as 64-bit words:
//
//   n_inputs I, n_states S, n_params P, n_consts K, n_outs O, n_records M,
//   per input: 1 if it is constant in time (stored (size)), else 0 (stored (T, size)),
//   per parameter: channels, inner; neuron i has element (i / inner) % channels; channels = 0: a number,
//   one section to go forward, two to go backward (`advance`, which recomputes states, and `adjoint`).
//
// A section is n_scratch, n_instructions, then op, dst, a, b, c of each. Rows are numbered
//
//   in a step:       inputs, states before, parameters, constants, outs, records, states after, scratch;
//   in an adjoint:   inputs, states before, parameters, constants, cotangents of outs, of records, of states after, then
//                    what it writes: gradients of inputs, cotangents of states before, scratch.
//
// No two rows share memory. A section writes each state after (each cotangent of a state before) in every step, by a copy
// if by nothing else. What it writes that no wanted result depends on is left out.
#pragma once
#include <cstdint>
#include <memory>

#include "../calls.h"

namespace esvae {

// X(name, its name in Python, operands). Masks are 1 and 0; a comparison with NaN is 0, but for `ne`.
#define ESVAE_SCAN_OPS(X)                                                                                           \
  X(copy, "copy", 1)                                                                                                \
  X(neg, "neg", 1)                                                                                                  \
  X(complement, "not", 1)         /* 1 - a, of a mask */                                                            \
  X(abs, "abs", 1)                                                                                                  \
  X(sign, "sign", 1)              /* 0 of both zeros and of NaN, as torch has it */                                 \
  X(floor, "floor", 1)                                                                                              \
  X(trunc, "trunc", 1)                                                                                              \
  X(sqrt, "sqrt", 1)              /* correctly rounded, as is div */                                                \
  X(add, "add", 2)                                                                                                  \
  X(sub, "sub", 2)                                                                                                  \
  X(mul, "mul", 2)                                                                                                  \
  X(div, "div", 2)                                                                                                  \
  X(minimum, "minimum", 2)        /* NaN if either is; b where they are equal */                                    \
  X(maximum, "maximum", 2)                                                                                          \
  X(lt, "lt", 2)                                                                                                    \
  X(le, "le", 2)                                                                                                    \
  X(eq, "eq", 2)                                                                                                    \
  X(ne, "ne", 2)                                                                                                    \
  X(both, "and", 2)               /* of masks */                                                                    \
  X(either, "or", 2)                                                                                                \
  X(where, "where", 3)            /* a != 0 ? b : c */                                                              \
  X(mul_add, "mul_add", 3)        /* a * b, rounded, + c, rounded; so the next two */                               \
  X(mul_sub, "mul_sub", 3)        /* a * b - c */                                                                   \
  X(sub_mul, "sub_mul", 3)        /* c - a * b */                                                                   \
  X(scale2, "scale2", 2)          /* a * 2^b, rounded once, also to a subnormal; b an integer, clamped to +-300 */   \
  X(exponent, "exponent", 1)      /* e of a = m * 2^e with |m| in [0.5, 1), as frexp; of 0, infinity and NaN 0 */   \
  X(mantissa, "mantissa", 1)      /* m of it; of 0, infinity and NaN a itself */                                    \
  X(exp, "exp", 1)                /* from here to cos: the library's, which differ in the last bit between them */  \
  X(log, "log", 1)                                                                                                  \
  X(tanh, "tanh", 1)                                                                                                \
  X(sigmoid, "sigmoid", 1)                                                                                          \
  X(atan, "atan", 1)                                                                                                \
  X(erf, "erf", 1)                                                                                                  \
  X(sin, "sin", 1)                                                                                                  \
  X(cos, "cos", 1)                                                                                                  \
  X(slope, "slope", 2)            /* the surrogate's derivative at a - (b + shift) */                               \
  X(primitive, "primitive", 2)    /* the smooth function that it is the derivative of */                            \
  X(accumulate, "accumulate", 1)  /* adds a to the sum, over time, of the gradient of parameter number dst */

enum class Op : int64_t {
#define ESVAE_OP(name, text, operands) name,
  ESVAE_SCAN_OPS(ESVAE_OP)
#undef ESVAE_OP
};

struct OpTraits {
  Op code;
  const char* name;
  int operands;
};
constexpr OpTraits kOps[] = {
#define ESVAE_OP(name, text, operands) {Op::name, text, operands},
    ESVAE_SCAN_OPS(ESVAE_OP)
#undef ESVAE_OP
};

// Operands that an op does not have are its first. A factor that is one value for all neurons comes first.
struct Step {
  Op op;
  int64_t dst, a, b, c;
};

struct Section {
  int64_t scratch = 0, rows = 0, count = 0;
  Step* steps = nullptr;
};

// A program as it was given, checked: the constructor throws std::invalid_argument where a word is out of range or a row
// is read before it is written. Compiled once, not per vector width: no template here may be shared with those.
struct Program {
  int64_t inputs, states, parameters, constants, outs, records;
  const int64_t* constant_input;  // (inputs)
  const int64_t* channels;        // (parameters, 2): channels, inner
  Section forward, advance, adjoint;
  bool* spikes = nullptr;  // (outs), forward: it is a mask
  bool slopes = false;     // there is a surrogate in it

  Program(const Scan& a, bool backward);
  ~Program();

  // The first row of each kind, in a step and up to `after` in an adjoint.
  int64_t state() const { return inputs; }
  int64_t parameter() const { return state() + states; }
  int64_t constant() const { return parameter() + parameters; }
  int64_t out() const { return constant() + constants; }
  int64_t record() const { return out() + outs; }
  int64_t after() const { return record() + records; }
  int64_t step_scratch() const { return after() + states; }
  int64_t input_gradient() const { return after() + states; }
  int64_t before() const { return input_gradient() + inputs; }
  int64_t adjoint_scratch() const { return before() + states; }

  // Whether a row is one value for all neurons.
  bool is_number(int64_t row) const {
    return row >= parameter() && row < out() && (row >= constant() || channels[2 * (row - parameter())] == 0);
  }

 private:
  const int64_t* read(const int64_t* word, Section& section, int64_t first_result, int64_t first_scratch);
  // Throws where a row is read, or wanted, that is not written; leaves out what no wanted row depends on.
  void reduce(Section& section, int64_t first_result, const bool* wanted, const int64_t* accumulated);

  std::unique_ptr<Step[]> memory_[2];
  std::unique_ptr<bool[]> spikes_;
};

}  // namespace esvae
