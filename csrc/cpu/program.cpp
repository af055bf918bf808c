// Reads a row program and checks it. Once a call: 20 instructions take well under a microsecond.
#include "program.h"

#include <stdexcept>
#include <string>

#include "../math/surrogate.h"

namespace esvae {
namespace {

constexpr int64_t kMostRows = 4096;  // of each kind: a neuron has a few
constexpr int64_t kMostInstructions = 1 << 16;

[[noreturn]] void refuse(const std::string& what, int64_t got) {
  throw std::invalid_argument("scan: " + what + ", got " + std::to_string(got));
}

int64_t count(const int64_t*& word, const char* what, int64_t most) {
  const int64_t n = *word++;
  if (n < 0 || n > most) refuse(std::string("the number of ") + what + " is out of range", n);
  return n;
}

const OpTraits& traits(Op op) { return kOps[static_cast<int64_t>(op)]; }

bool makes_mask(Op op) {
  switch (op) {
    case Op::complement:
    case Op::lt:
    case Op::le:
    case Op::eq:
    case Op::ne:
    case Op::both:
    case Op::either: return true;
    default: return false;
  }
}

bool factors_first(Op op) {
  switch (op) {
    case Op::add:
    case Op::mul:
    case Op::eq:
    case Op::ne:
    case Op::both:
    case Op::either:
    case Op::mul_add:
    case Op::mul_sub:
    case Op::sub_mul: return true;
    default: return false;
  }
}

}  // namespace

const int64_t* Program::read(const int64_t* word, Section& section, int64_t first_result, int64_t first_scratch) {
  section.scratch = count(word, "scratch rows", kMostRows);
  section.count = count(word, "instructions", kMostInstructions);
  section.rows = first_scratch + section.scratch;
  std::unique_ptr<Step[]>& memory = memory_[&section == &adjoint];
  memory.reset(new Step[section.count]);
  section.steps = memory.get();
  const auto readable = [&](int64_t row) {
    if (row < 0 || row >= section.rows) refuse("an operand is no row of 0 .. " + std::to_string(section.rows - 1), row);
    return row;
  };
  for (int64_t k = 0; k < section.count; ++k, word += 5) {
    if (word[0] < 0 || word[0] >= static_cast<int64_t>(sizeof kOps / sizeof *kOps)) refuse("there is no such op", word[0]);
    Step& step = section.steps[k];
    step.op = static_cast<Op>(word[0]);
    const int operands = traits(step.op).operands;
    step.dst = word[1];
    step.a = readable(word[2]);
    step.b = operands > 1 ? readable(word[3]) : step.a;
    step.c = operands > 2 ? readable(word[4]) : step.a;
    if (step.op == Op::accumulate ? step.dst < 0 || step.dst >= parameters
                                  : step.dst < first_result || step.dst >= section.rows)
      refuse(std::string("the result of ") + traits(step.op).name + " is not its own to write", step.dst);
    if (step.op == Op::accumulate && &section != &adjoint) refuse("accumulate is for the adjoint", step.dst);
    if (factors_first(step.op) && is_number(step.b) && !is_number(step.a)) {
      const int64_t a = step.a;
      step.a = step.b;
      step.b = a;
    }
    slopes = slopes || step.op == Op::slope || step.op == Op::primitive;
  }
  return word;
}

void Program::reduce(Section& section, int64_t first_result, const bool* wanted, const int64_t* accumulated) {
  const std::unique_ptr<bool[]> there(new bool[section.rows]()), needed(new bool[section.rows]());
  for (int64_t row = 0; row < first_result; ++row) there[row] = true;
  for (int64_t k = 0; k < section.count; ++k) {
    const Step& step = section.steps[k];
    for (const int64_t row : {step.a, step.b, step.c})
      if (!there[row]) refuse("a row is read before it is written", row);
    if (step.op != Op::accumulate) there[step.dst] = true;
  }
  for (int64_t row = 0; row < section.rows; ++row) {
    needed[row] = wanted[row];
    if (wanted[row] && !there[row]) refuse("a result is not written", row);
  }
  int64_t at = section.count;
  for (int64_t k = section.count - 1; k >= 0; --k) {
    const Step step = section.steps[k];
    if (step.op == Op::accumulate ? !accumulated[step.dst] : !needed[step.dst]) continue;
    if (step.op != Op::accumulate) needed[step.dst] = false;
    needed[step.a] = needed[step.b] = needed[step.c] = true;
    section.steps[--at] = step;
  }
  section.count -= at;
  for (int64_t k = 0; k < section.count; ++k) section.steps[k] = section.steps[at + k];
}

Program::Program(const Scan& a, bool backward) {
  if (a.steps < 1) refuse("steps: at least 1", a.steps);
  if (a.size < 0) refuse("size: at least 0", a.size);
  if (a.place.threads < 1) refuse("threads: at least 1", a.place.threads);
  if (a.x_dtype < DType::f64 || a.x_dtype > DType::f16) refuse("x_dtype: no such type", static_cast<int>(a.x_dtype));
  if (a.out_dtype < DType::f64 || a.out_dtype > DType::u8) refuse("out_dtype: no such type", static_cast<int>(a.out_dtype));
  const int64_t* word = a.program;
  inputs = count(word, "inputs", kMostRows);
  states = count(word, "states", kMostRows);
  parameters = count(word, "parameters", kMostRows);
  constants = count(word, "constants", kMostRows);
  outs = count(word, "outputs", kMostRows);
  records = count(word, "records", kMostRows);
  if (a.readout != Readout::none && outs == 0) refuse("a readout is of an output", outs);
  constant_input = word;
  word += inputs;
  channels = word;
  word += 2 * parameters;
  for (int64_t k = 0; k < parameters; ++k) {
    if (channels[2 * k] < 0) refuse("channels: at least 0", channels[2 * k]);
    if (channels[2 * k] > 0 && channels[2 * k + 1] < 1) refuse("inner: at least 1", channels[2 * k + 1]);
  }
  const auto there = [&](const char* what, int64_t address) {
    if (!address) refuse(std::string(what) + ": an address is missing", 0);
  };
  for (int64_t k = 0; k < inputs; ++k) there("inputs", a.tensors[k]);
  for (int64_t k = 0; k < parameters; ++k)
    if (channels[2 * k]) there("parameters", a.tensors[inputs + states + k]);
  if (a.readout == Readout::weights && !a.weights) there("weights", 0);
  if (backward) {
    if (states && a.steps > kChunk) there("saved", a.tensors[inputs + states + parameters]);
    word = read(word, advance, out(), step_scratch());
    read(word, adjoint, input_gradient(), adjoint_scratch());
    const std::unique_ptr<bool[]> of_advance(new bool[advance.rows]()), of_adjoint(new bool[adjoint.rows]());
    const int64_t* const results = a.tensors + inputs + states + parameters + 1 + outs + states + records;
    for (int64_t s = 0; s < states; ++s) of_advance[after() + s] = of_adjoint[before() + s] = true;
    for (int64_t k = 0; k < inputs; ++k) of_adjoint[input_gradient() + k] = results[k] != 0;
    reduce(advance, out(), of_advance.get(), nullptr);
    reduce(adjoint, input_gradient(), of_adjoint.get(), results + inputs + states);
  } else {
    read(word, forward, out(), step_scratch());
  }
  if (slopes && !with_surrogate<float>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale}, [](auto) {}))
    refuse("surrogate: no such", a.surrogate);
  if (backward) return;
  const std::unique_ptr<bool[]> wanted(new bool[forward.rows]());
  const int64_t* const out_tensors = a.tensors + inputs + states + parameters;
  const int64_t* const record_tensors = out_tensors + outs + states;
  for (int64_t k = 0; k < outs; ++k) wanted[out() + k] = out_tensors[k] != 0;
  for (int64_t k = 0; k < records; ++k) wanted[record() + k] = record_tensors[k] != 0;
  for (int64_t s = 0; s < states; ++s) wanted[after() + s] = true;
  reduce(forward, out(), wanted.get(), nullptr);
  spikes_.reset(new bool[outs]());
  spikes = spikes_.get();
  for (int64_t k = 0; k < forward.count; ++k) {
    const Step& step = forward.steps[k];
    if (step.dst >= out() && step.dst < record()) spikes[step.dst - out()] = makes_mask(step.op);
  }
}

Program::~Program() = default;

}  // namespace esvae
