// Runs a row program (program.h): a thread takes a piece of neurons through the whole sequence with their rows in cache;
// an instruction is one vectorised loop over a piece, chosen by address once a call. Compiled once per vector width.
//
// The order of a call's tensors. R is the state's type: double where x is f64, else float.
//   forward:  inputs, initial states R (size), parameters R (channels), | outs, last states R (size), records R (T, size),
//             saved R (S, (T-1)/kChunk, size): the states before steps kChunk, 2 kChunk, ...;
//   backward: inputs, initial states, parameters, saved, cotangents of outs, of last states, of records, | gradients of
//             inputs (those of a constant one summed over time), of initial states R (size), of parameters R (size): sums
//             over time, per neuron.
#include <cmath>
#include <memory>
#include <utility>

#include "../math/surrogate.h"
#include "channels.h"
#include "kernels.h"
#include "parallel.h"
#include "program.h"
#include "rows.h"

namespace esvae {
namespace {

// -------------------------------------------------------------------------------------------------- instructions

// Loops run over whole groups of elements, so that they have no remainder: rows are as long.
constexpr int64_t kGroup = 16;

// What surrogates need: the same for all instructions.
struct Slopes {
  SurrogateShape shape;
  double shift;
};

// One instruction on n neurons of a piece. An operand may be one value for all of them.
template <class R>
using Run = void (*)(const Slopes&, R* d, const R* a, const R* b, const R* c, int64_t n);

template <class R, bool number>
struct Operand {
  R value;
  const R* values;
  explicit Operand(const R* p) : value(*p), values(p) {}
  ESVAE_HD R operator[](int64_t i) const { return number ? value : values[i]; }
};

template <class R>
struct Bits;
template <>
struct Bits<float> {
  using Word = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLeastNormal = 0x1p-126f, kToNormal = 0x1p24f, kUnits = 0x1p23f;
};
template <>
struct Bits<double> {
  using Word = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLeastNormal = 0x1p-1022, kToNormal = 0x1p53, kUnits = 0x1p52;
};

template <class To, class From>
ESVAE_HD To bits_of(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// By way of fp64, where every fp32 and every power of two here is normal and their product exact. Adding 1.5 * 2^52
// leaves the integer in the low bits.
template <class R>
ESVAE_HD R scale_by_power(R a, R b) {
  double e = static_cast<double>(b);
  e = e > -300 ? e : -300;
  e = e < 300 ? e : 300;
  const uint64_t integer = bits_of<uint64_t>(e + 0x1.8p52);
  return static_cast<R>(static_cast<double>(a) * bits_of<double>((integer + 1023) << 52));
}

template <bool want_exponent, class R>
ESVAE_HD R part_of(R a) {
  using B = Bits<R>;
  using Word = typename B::Word;
  constexpr Word kExponent = (Word(1) << (sizeof(R) * 8 - 1)) - (Word(1) << B::kMantissa);
  const bool subnormal = std::fabs(a) < B::kLeastNormal;
  const Word bits = bits_of<Word>(subnormal ? a * B::kToNormal : a);
  const bool none = !(std::fabs(a) < R(INFINITY)) || a == 0;
  if (!want_exponent) {
    const R m = bits_of<R>(static_cast<Word>((bits & ~kExponent) | (Word(B::kBias - 1) << B::kMantissa)));
    return none ? a : m;
  }
  // The exponent's bits in the mantissa of 2^23, or 2^52, are an integer above it.
  const Word field = static_cast<Word>((bits & kExponent) >> B::kMantissa) | bits_of<Word>(B::kUnits);
  const R e = bits_of<R>(field) - (B::kUnits + R(B::kBias - 1)) - (subnormal ? R(B::kMantissa + 1) : R(0));
  return none ? R(0) : e;
}

template <Op op, class R>
ESVAE_HD R result(R a, R b, R c) {
  switch (op) {
    case Op::copy: return a;
    case Op::neg: return -a;
    case Op::complement: return R(1) - a;
    case Op::abs: return std::fabs(a);
    case Op::sign: return (a > R(0) ? R(1) : R(0)) - (a < R(0) ? R(1) : R(0));
    case Op::floor: return std::floor(a);
    case Op::trunc: return std::trunc(a);
    case Op::sqrt: return std::sqrt(a);
    case Op::accumulate:
    case Op::add: return a + b;
    case Op::sub: return a - b;
    case Op::mul: return a * b;
    case Op::div: return a / b;
    case Op::minimum: return (a < b) | (a != a) ? a : b;
    case Op::maximum: return (a > b) | (a != a) ? a : b;
    case Op::lt: return a < b ? R(1) : R(0);
    case Op::le: return a <= b ? R(1) : R(0);
    case Op::eq: return a == b ? R(1) : R(0);
    case Op::ne: return a != b ? R(1) : R(0);
    case Op::both: return a < b ? a : b;
    case Op::either: return a > b ? a : b;
    case Op::where: return a != R(0) ? b : c;
    case Op::mul_add: return a * b + c;
    case Op::mul_sub: return a * b - c;
    case Op::sub_mul: return c - a * b;
    case Op::scale2: return scale_by_power(a, b);
    case Op::exponent: return part_of<true>(a);
    case Op::mantissa: return part_of<false>(a);
    case Op::exp: return std::exp(a);
    case Op::log: return std::log(a);
    case Op::tanh: return std::tanh(a);
    case Op::sigmoid: return R(1) / (R(1) + std::exp(-a));
    case Op::atan: return std::atan(a);
    case Op::erf: return std::erf(a);
    case Op::sin: return std::sin(a);
    case Op::cos: return std::cos(a);
    case Op::slope:
    case Op::primitive: break;  // below
  }
  return R(0);
}

// `numbers`: which operands are one value, as bits.
template <Op op, int numbers, class R>
void run(const Slopes&, R* d, const R* pa, const R* pb, const R* pc, int64_t n) {
  const Operand<R, (numbers & 1) != 0> a(pa);
  const Operand<R, (numbers & 2) != 0> b(pb);
  const Operand<R, (numbers & 4) != 0> c(pc);
  n &= -kGroup;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = result<op>(a[i], b[i], c[i]);
}

template <class Surrogate, bool number, class R>
void slope(const Slopes& s, R* d, const R* a, const R* pb, const R*, int64_t n) {
  const Surrogate surrogate(s.shape);
  const Operand<R, number> b(pb);
  const R shift = static_cast<R>(s.shift);
  n &= -kGroup;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = surrogate.slope(a[i] - (b[i] + shift));
}

template <class Surrogate, class R>
void primitive(const Slopes& s, R* d, const R* a, const R* b, const R*, int64_t n) {
  const Surrogate surrogate(s.shape);
  const R shift = static_cast<R>(s.shift);
  for (int64_t i = 0; i < n; ++i) d[i] = surrogate.smooth(a[i] - (b[i] + shift));
}

// The loop for `numbers`, or the one compiled for most of them: its own are left in `numbers`.
template <class R>
struct Loop {
  Run<R> run;
  int numbers;
};

template <Op op, class R, int... compiled>
Loop<R> widest(int numbers) {
  Loop<R> best{run<op, 0, R>, 0};
  const auto consider = [&](int mask, Run<R> loop) {
    if ((mask & numbers) == mask && __builtin_popcount(mask) > __builtin_popcount(best.numbers)) best = {loop, mask};
  };
  (consider(compiled, run<op, compiled, R>), ...);
  return best;
}

// The combinations that neurons use. Where operands commute the number is the first (program.h).
template <Op op, class R>
Loop<R> loop_of(int numbers) {
  switch (op) {
    case Op::add:
    case Op::mul:
    case Op::eq:
    case Op::ne: return widest<op, R, 1>(numbers);
    case Op::sub:
    case Op::div:
    case Op::minimum:
    case Op::maximum:
    case Op::lt:
    case Op::le: return widest<op, R, 1, 2>(numbers);
    case Op::where: return widest<op, R, 2, 4, 6>(numbers);
    case Op::mul_add:
    case Op::mul_sub:
    case Op::sub_mul: return widest<op, R, 1, 4, 5>(numbers);
    default: return {run<op, 0, R>, 0};
  }
}

template <class R>
Loop<R> loop_of(Op op, int numbers, const Scan& a) {
  Loop<R> loop{};
  if (op == Op::slope || op == Op::primitive) {
    with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale}, [&](auto surrogate) {
      using S = decltype(surrogate);
      loop.numbers = op == Op::slope ? numbers & 2 : 0;
      loop.run = op == Op::primitive ? primitive<S, R> : loop.numbers ? slope<S, true, R> : slope<S, false, R>;
    });
    return loop;
  }
  switch (op) {
#define ESVAE_LOOP(name, text, operands) \
  case Op::name: return loop_of<Op::name, R>(numbers);
    ESVAE_SCAN_OPS(ESVAE_LOOP)
#undef ESVAE_LOOP
  }
  return loop;
}

// ------------------------------------------------------------------------------------------------ a section, bound

template <class R>
struct Instruction {
  Run<R> run;
  int64_t dst, a, b, c;  // rows
};

// A section's instructions with their loops. Behind the section's rows come those of the numbers that some loop wants
// spread over a row, in their order, then the sums of the parameters' gradients.
template <class R>
struct Code {
  std::unique_ptr<Instruction<R>[]> list;
  std::unique_ptr<bool[]> spread;  // (parameters + constants)
  int64_t count, first_spread, first_sum, rows;
  Slopes slopes;

  Code(const Program& program, const Section& section, const Scan& a)
      : list(new Instruction<R>[section.count]), spread(new bool[program.parameters + program.constants]()),
        count(section.count), first_spread(section.rows),
        first_sum(first_spread + program.parameters + program.constants), rows(first_sum + program.parameters),
        slopes{{a.shape, a.scale}, a.shift} {
    for (int64_t k = 0; k < count; ++k) {
      const Step& step = section.steps[k];
      int64_t operand[3] = {step.a, step.b, step.c};
      const int operands = kOps[static_cast<int64_t>(step.op)].operands;
      int numbers = 0;
      for (int j = 0; j < operands; ++j) numbers |= program.is_number(operand[j]) << j;
      const Loop<R> loop = loop_of<R>(step.op, numbers, a);
      for (int j = 0; j < operands; ++j)
        if ((numbers & ~loop.numbers) >> j & 1) {
          const int64_t number = operand[j] - program.parameter();
          spread[number] = true;
          operand[j] = first_spread + number;
        }
      for (int j = operands; j < 3; ++j) operand[j] = operand[0];
      list[k] = {loop.run, step.dst, operand[0], operand[1], operand[2]};
      if (step.op == Op::accumulate) {
        const int64_t sum = first_sum + step.dst;
        list[k] = {loop.run, sum, sum, operand[0], operand[0]};
      }
    }
  }

  void run(R* const* row, int64_t n) const {
    const Instruction<R>* i = list.get();
    for (int64_t k = 0; k < count; ++k, ++i) i->run(slopes, row[i->dst], row[i->a], row[i->b], row[i->c], n);
  }
};

// The rows of a section as a thread has them. Rows are read and written by the program, or bound to tensors and read.
template <class R>
struct Bound {
  R** row;

  Bound(Rows& memory, const Code<R>& code) : row(memory.take<R*>(code.rows)) {}
  R*& operator[](int64_t k) const { return row[k]; }
};

// `count` rows of a piece.
template <class R>
struct Block {
  R* first;
  int64_t stride;

  Block(Rows& memory, int64_t stride, int64_t count) : first(memory.take<R>(stride * count)), stride(stride) {}
  R* operator[](int64_t k) const { return first + k * stride; }
};

template <class R>
const R* tensor(int64_t address) {
  return reinterpret_cast<const R*>(static_cast<uintptr_t>(address));
}
template <class R>
R* result_tensor(int64_t address) {
  return reinterpret_cast<R*>(static_cast<uintptr_t>(address));
}

template <class R>
void fill(R* row, R value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] = value;
}

// ---------------------------------------------------------------------------------------------------- both ways

// Bytes of a row of the neurons that a thread takes through time at once: an instruction then takes longer than its
// call, and the rows that it and its neighbours use stay in L1 (twice as many take 1.2 times as long).
constexpr int64_t kBytesOfRow = 2048;

// What a call's pieces share.
template <class R>
struct Plan {
  const Scan& a;
  const Program& program;
  RowIo<R> x_io, out_io;
  int64_t piece;  // neurons of a piece
  const int64_t* inputs;
  const int64_t* initial;
  const int64_t* parameters;
  const int64_t* others;  // behind them
  R rate;                 // the weight of each step in a mean over time

  Plan(const Scan& call, const Program& of)
      : a(call), program(of), x_io(row_io<R>(call.x_dtype)), out_io(row_io<R>(call.out_dtype)), inputs(call.tensors),
        initial(inputs + of.inputs), parameters(initial + of.states), others(parameters + of.parameters),
        rate(R(1) / static_cast<R>(call.steps)) {
    piece = kBytesOfRow / static_cast<int64_t>(sizeof(R));
    const int64_t share = (a.size / a.place.threads + 63) / 64 * 64;  // neurons do not depend on each other
    if (piece > share) piece = share < 64 ? 64 : share;
  }

  R number(int64_t k) const { return static_cast<R>(a.numbers[k]); }
  bool large(int64_t bytes) const { return a.steps * a.size * bytes >= kStreamBytes; }

  // Numbers of this call, in the state's type.
  void numbers(R* values) const {
    for (int64_t k = 0; k < program.parameters + program.constants; ++k) values[k] = number(program.states + k);
  }

  // Neurons begin .. begin + n - 1 of a row: in the tensor itself where that has whole groups of R.
  template <class Io>
  R* load(const Io& io, int64_t address, int64_t offset, R* buffer, int64_t n) const {
    const R* row = io.load(tensor<void>(address), offset, buffer, n);
    if (row != buffer && n % kGroup) {
      memcpy(buffer, row, n * sizeof(R));
      row = buffer;
    }
    return const_cast<R*>(row);
  }

  void load_state(R* row, int64_t address, int64_t offset, R otherwise, int64_t n) const {
    if (address)
      memcpy(row, tensor<R>(address) + offset, n * sizeof(R));
    else
      fill(row, otherwise, n);
  }

  void load_states(R* const* row, int64_t saved, int64_t first, int64_t begin, int64_t n) const {
    const int64_t chunks = (a.steps - 1) / kChunk;
    for (int64_t s = 0; s < program.states; ++s)
      if (first)
        load_state(row[s], saved, (s * chunks + first / kChunk - 1) * a.size + begin, R(0), n);
      else
        load_state(row[s], initial[s], begin, number(s), n);
  }

  // Binds what does not change over time: constant inputs, parameters, constants.
  void bind(const Code<R>& code, const Bound<R>& bound, const Block<R>& x, const Block<R>& per_neuron,
            const Block<R>& spread, R* values, int64_t begin, int64_t n) const {
    for (int64_t k = 0; k < program.inputs; ++k)
      if (program.constant_input[k]) bound[k] = load(x_io, inputs[k], begin, x[k], n);
    for (int64_t k = 0; k < program.parameters + program.constants; ++k) {
      const int64_t row = program.parameter() + k;
      bound[row] = values + k;
      if (!program.is_number(row)) {
        bound[row] = per_neuron[k];
        const int64_t* shape = program.channels + 2 * k;
        Channels{shape[0], shape[1]}.spread(tensor<R>(parameters[k]), begin, n, per_neuron[k]);
      } else if (code.spread[k]) {
        bound[code.first_spread + k] = spread[k];
        fill(spread[k], values[k], piece);
      }
    }
  }

  void bind_inputs(const Bound<R>& bound, const Block<R>& x, int64_t t, int64_t begin, int64_t n) const {
    for (int64_t k = 0; k < program.inputs; ++k)
      if (!program.constant_input[k]) bound[k] = load(x_io, inputs[k], t * a.size + begin, x[k], n);
  }

  void prefetch_inputs(int64_t t, int64_t begin, int64_t n) const {
    for (int64_t k = 0; k < program.inputs; ++k)
      if (!program.constant_input[k]) x_io.prefetch(tensor<void>(inputs[k]), t * a.size + begin, n);
  }

  R weight(int64_t t) const { return a.readout == Readout::weights ? static_cast<R>(a.weights[t]) : rate; }
};

// ------------------------------------------------------------------------------------------------------- forward

template <class R>
struct ForwardRows {
  Bound<R> bound;
  R* values;
  Block<R> x, per_neuron, spread, written;  // written: outs, records, then states twice, then scratch
  R* sum;
  double* counted;  // what `sum` held every kCounted steps, of a mean over more

  ForwardRows(Rows& memory, const Plan<R>& plan, const Code<R>& code)
      : bound(memory, code), values(memory.take<R>(plan.program.parameters + plan.program.constants)),
        x(memory, plan.piece, plan.program.inputs), per_neuron(memory, plan.piece, plan.program.parameters),
        spread(memory, plan.piece, plan.program.parameters + plan.program.constants),
        written(memory, plan.piece,
                plan.program.outs + plan.program.records + 2 * plan.program.states + plan.program.forward.scratch),
        sum(memory.take<R>(plan.piece, plan.a.readout != Readout::none)),
        counted(memory.take<double>(plan.piece, plan.a.readout == Readout::rate && plan.a.steps > kCounted)) {}
};

// A count in the state's type starts anew: it is added to one in fp64.
template <class R>
void count_on(R* sum, double* counted, int64_t n) {
  for (int64_t i = 0; i < n; ++i) counted[i] += static_cast<double>(sum[i]), sum[i] = 0;
}

template <class R>
void divide(R* sum, double* counted, int64_t steps, int64_t n) {
  if (counted) count_on(sum, counted, n);
  for (int64_t i = 0; i < n; ++i)
    sum[i] = counted ? static_cast<R>(counted[i] / static_cast<double>(steps)) : sum[i] / static_cast<R>(steps);
}

template <class R>
void forward(const Scan& a, const Program& p) {
  const Code<R> code(p, p.forward, a);
  const Plan<R> plan(a, p);
  const int64_t* const outs = plan.others;
  const int64_t* const last = outs + p.outs;
  const int64_t* const records = last + p.states;
  const int64_t saved = records[p.records], chunks = (a.steps - 1) / kChunk;
  const bool stream = plan.large(plan.out_io.bytes), stream_records = plan.large(sizeof(R));
  const auto make = [&](Rows& memory) { return ForwardRows<R>(memory, plan, code); };
  parallel_blocks(a.size, plan.piece, a.place.threads, make, [&](const ForwardRows<R>& own, int64_t begin, int64_t n) {
    const int64_t whole = (n + kGroup - 1) / kGroup * kGroup;
    const Bound<R> bound = own.bound;
    plan.numbers(own.values);
    plan.bind(code, bound, own.x, own.per_neuron, own.spread, own.values, begin, n);
    for (int64_t k = 0; k < p.outs + p.records + p.states; ++k) bound[p.out() + k] = own.written[k];
    for (int64_t k = 0; k < p.states; ++k) bound[p.state() + k] = own.written[p.outs + p.records + p.states + k];
    for (int64_t k = 0; k < p.forward.scratch; ++k)
      bound[p.step_scratch() + k] = own.written[p.outs + p.records + 2 * p.states + k];
    plan.load_states(bound.row + p.state(), 0, 0, begin, n);
    if (own.sum) memset(own.sum, 0, n * sizeof(R));
    if (own.counted) memset(own.counted, 0, n * sizeof(double));
    for (int64_t t = 0; t < a.steps; ++t) {
      if (t > 0 && t % kChunk == 0) {
        for (int64_t s = 0; saved && s < p.states; ++s)
          memcpy(result_tensor<R>(saved) + (s * chunks + t / kChunk - 1) * a.size + begin, bound[p.state() + s],
                 n * sizeof(R));
        if (own.counted && t % kCounted == 0) count_on(own.sum, own.counted, n);
      }
      if (t + kAhead < a.steps) plan.prefetch_inputs(t + kAhead, begin, n);
      plan.bind_inputs(bound, own.x, t, begin, n);
      code.run(bound.row, whole);
      const int64_t at = t * a.size + begin;
      for (int64_t k = 0; k < p.outs; ++k) {
        if (!outs[k]) continue;
        const R* const s = bound[p.out() + k];
        if (k > 0 || a.readout == Readout::none) {
          (p.spikes[k] ? plan.out_io.store_spikes : plan.out_io.store)(result_tensor<void>(outs[k]), at, s, n, stream);
        } else {
          const R weight = a.readout == Readout::weights ? plan.weight(t) : R(1);
          for (int64_t i = 0; i < n; ++i) own.sum[i] += weight * s[i];
        }
      }
      for (int64_t k = 0; k < p.records; ++k)
        if (records[k]) store_row(result_tensor<R>(records[k]) + at, bound[p.record() + k], n, stream_records);
      for (int64_t s = 0; s < p.states; ++s) std::swap(bound[p.state() + s], bound[p.after() + s]);
    }
    if (a.readout == Readout::rate) divide(own.sum, own.counted, a.steps, n);
    if (a.readout != Readout::none && outs[0]) plan.out_io.store(result_tensor<void>(outs[0]), begin, own.sum, n, false);
    for (int64_t s = 0; s < p.states; ++s)
      if (last[s]) memcpy(result_tensor<R>(last[s]) + begin, bound[p.state() + s], n * sizeof(R));
    stream_fence(stream || stream_records);
  });
}

// ------------------------------------------------------------------------------------------------------ backward

template <class R>
struct BackwardRows {
  Bound<R> advance, adjoint;
  R* values;
  Block<R> x, per_neuron, spread, given, kept, written, sums;
  R *zero, *readout;

  // given: outs and records of a step, then their cotangents. written: cotangents of states twice, gradients of inputs,
  // scratch. sums: of the gradients of parameters, of constant inputs.
  BackwardRows(Rows& memory, const Plan<R>& plan, const Code<R>& advance, const Code<R>& adjoint)
      : advance(memory, advance), adjoint(memory, adjoint),
        values(memory.take<R>(plan.program.parameters + plan.program.constants)),
        x(memory, plan.piece, plan.program.inputs), per_neuron(memory, plan.piece, plan.program.parameters),
        spread(memory, plan.piece, plan.program.parameters + plan.program.constants),
        given(memory, plan.piece, plan.program.outs + plan.program.records),
        kept(memory, plan.piece, plan.program.states * kChunk),
        written(memory, plan.piece, 2 * plan.program.states + plan.program.inputs + scratch(plan.program)),
        sums(memory, plan.piece, plan.program.parameters + plan.program.inputs), zero(memory.take<R>(plan.piece)),
        readout(memory.take<R>(plan.piece)) {}

  static int64_t scratch(const Program& p) {
    return p.advance.scratch > p.adjoint.scratch ? p.advance.scratch : p.adjoint.scratch;
  }
};

template <class R>
void backward(const Scan& a, const Program& p) {
  const Code<R> advance(p, p.advance, a), adjoint(p, p.adjoint, a);
  const Plan<R> plan(a, p);
  const int64_t saved = plan.others[0];
  const int64_t* const dout = plan.others + 1;
  const int64_t* const dlast = dout + p.outs;
  const int64_t* const drecords = dlast + p.states;
  const int64_t* const dx = drecords + p.records;
  const int64_t* const dinitial = dx + p.inputs;
  const int64_t* const dparameters = dinitial + p.states;
  const bool stream = plan.large(plan.x_io.bytes);
  const bool reads_out = a.readout != Readout::none && dout[0];
  const auto make = [&](Rows& memory) { return BackwardRows<R>(memory, plan, advance, adjoint); };
  parallel_blocks(a.size, plan.piece, a.place.threads, make, [&](const BackwardRows<R>& own, int64_t begin, int64_t n) {
    const int64_t whole = (n + kGroup - 1) / kGroup * kGroup;
    const Bound<R> step = own.advance, back = own.adjoint;
    R* const readout = own.readout;
    plan.numbers(own.values);
    plan.bind(advance, step, own.x, own.per_neuron, own.spread, own.values, begin, n);
    plan.bind(adjoint, back, own.x, own.per_neuron, own.spread, own.values, begin, n);
    memset(own.zero, 0, plan.piece * sizeof(R));
    const int64_t scratch = 2 * p.states + p.inputs;
    for (int64_t k = 0; k < p.outs + p.records; ++k) step[p.out() + k] = own.given[k], back[p.out() + k] = own.zero;
    for (int64_t k = 0; k < p.advance.scratch; ++k) step[p.step_scratch() + k] = own.written[scratch + k];
    for (int64_t k = 0; k < p.adjoint.scratch; ++k) back[p.adjoint_scratch() + k] = own.written[scratch + k];
    for (int64_t k = 0; k < p.inputs; ++k) back[p.input_gradient() + k] = own.written[2 * p.states + k];
    for (int64_t k = 0; k < p.parameters; ++k) back[adjoint.first_sum + k] = own.sums[k];
    memset(own.sums.first, 0, (p.parameters + p.inputs) * plan.piece * sizeof(R));
    for (int64_t s = 0; s < p.states; ++s) {
      back[p.after() + s] = own.written[s];
      back[p.before() + s] = own.written[p.states + s];
      plan.load_state(own.written[s], dlast[s], begin, R(0), n);
    }
    if (reads_out) {
      const R* row = plan.load(plan.out_io, dout[0], begin, readout, n);
      const R weight = a.readout == Readout::rate ? plan.rate : R(1);  // of weights each step takes its own
      for (int64_t i = 0; i < n; ++i) readout[i] = row[i] * weight;
      back[p.out()] = readout;
    }

    for (int64_t first = (a.steps - 1) / kChunk * kChunk; first >= 0; first -= kChunk) {
      const int64_t end = first + kChunk < a.steps ? first + kChunk : a.steps;
      const auto kept = [&](int64_t s, int64_t t) { return own.kept[s * kChunk + t - first]; };
      for (int64_t s = 0; s < p.states; ++s) step[p.state() + s] = kept(s, first);
      plan.load_states(step.row + p.state(), saved, first, begin, n);
      for (int64_t t = first; t + 1 < end; ++t) {
        if (t + kAhead < end) plan.prefetch_inputs(t + kAhead, begin, n);
        plan.bind_inputs(step, own.x, t, begin, n);
        for (int64_t s = 0; s < p.states; ++s) step[p.state() + s] = kept(s, t), step[p.after() + s] = kept(s, t + 1);
        advance.run(step.row, whole);
      }
      for (int64_t t = end - 1; t >= first; --t) {
        const int64_t at = t * a.size + begin;
        plan.bind_inputs(back, own.x, t, begin, n);
        for (int64_t s = 0; s < p.states; ++s) back[p.state() + s] = kept(s, t);
        for (int64_t k = 0; k < p.outs; ++k) {
          if (!dout[k]) continue;
          R*& row = back[p.out() + k];
          if (k > 0 || a.readout == Readout::none) {
            if (t - kAhead >= 0) plan.out_io.prefetch(tensor<void>(dout[k]), at - kAhead * a.size, n);
            row = plan.load(plan.out_io, dout[k], at, own.given[k], n);
          } else if (a.readout == Readout::weights) {
            const R weight = plan.weight(t);
            row = own.given[k];
            for (int64_t i = 0; i < n; ++i) row[i] = readout[i] * weight;
          }
        }
        for (int64_t k = 0; k < p.records; ++k)
          if (drecords[k]) {
            R* const buffer = own.given[p.outs + k];
            const R* const row = tensor<R>(drecords[k]) + at;
            if (n % kGroup) memcpy(buffer, row, n * sizeof(R));
            back[p.record() + k] = n % kGroup ? buffer : const_cast<R*>(row);
          }
        adjoint.run(back.row, whole);
        for (int64_t k = 0; k < p.inputs; ++k) {
          if (!dx[k]) continue;
          const R* const row = back[p.input_gradient() + k];
          R* const sum = own.sums[p.parameters + k];
          if (!p.constant_input[k])
            plan.x_io.store(result_tensor<void>(dx[k]), at, row, n, stream);
          else
            for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
        }
        for (int64_t s = 0; s < p.states; ++s) std::swap(back[p.before() + s], back[p.after() + s]);
      }
    }
    for (int64_t k = 0; k < p.inputs; ++k)
      if (dx[k] && p.constant_input[k])
        plan.x_io.store(result_tensor<void>(dx[k]), begin, own.sums[p.parameters + k], n, false);
    for (int64_t s = 0; s < p.states; ++s)
      if (dinitial[s]) memcpy(result_tensor<R>(dinitial[s]) + begin, back[p.after() + s], n * sizeof(R));
    for (int64_t k = 0; k < p.parameters; ++k)
      if (dparameters[k]) memcpy(result_tensor<R>(dparameters[k]) + begin, own.sums[k], n * sizeof(R));
    stream_fence(stream);
  });
}

}  // namespace

namespace ESVAE_ISA {

void scan_forward(const Scan& a) {
  const Program program(a, false);
  with_state(a.x_dtype, [&](auto zero) { forward<decltype(zero)>(a, program); });
}

void scan_backward(const Scan& a) {
  const Program program(a, true);
  with_state(a.x_dtype, [&](auto zero) { backward<decltype(zero)>(a, program); });
}

}  // namespace ESVAE_ISA
}  // namespace esvae
