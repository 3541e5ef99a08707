// The inner loops of exact.py: exact scores of rows that lie anywhere in memory, and their order.
//
// There is one inner product, with one order of additions, whatever else is scored in the same
// call and whatever the processor; so a score has the same bits everywhere. NumPy needs a dozen
// calls, and copies of vectors or of scores, for what is done here while vectors are on their way.

#define Py_LIMITED_API 0x030B0000  // with buffers: one build serves every later Python
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_GENERATIONS  // of processors, for each of which the loops are compiled
#include <immintrin.h>
#endif

namespace {

constexpr Py_ssize_t kLanes = 16;              // sums that are added up side by side
constexpr Py_ssize_t kRowsAhead = 12;          // fetched from memory while one is scored; measured
constexpr int64_t kLooksAhead = 32;            // at a mask, which lies anywhere in memory; measured
constexpr int kSecondLevel = 1;                // of caches: more can be on their way to it at once
constexpr Py_ssize_t kFloatsInALine = 16;      // what one fetch brings
constexpr Py_ssize_t kRowsInAPart = 512;       // of a mask that are gathered before they are scored
constexpr Py_ssize_t kDense = 4;               // rows to one eligible, below which all are read
constexpr size_t kMovesPerKey = 4;             // up to which this is faster than sorting
constexpr int64_t kMaxRows = int64_t{1} << 32;  // that the lower half of a key tells apart
constexpr Py_ssize_t kShortWork = 1 << 17;  // some 50 us; longer work lets other threads run

typedef float Lanes4 __attribute__((vector_size(16)));

// Vectors of one dimension, row after row.
struct Vectors {
  const float* data;
  Py_ssize_t n;
  Py_ssize_t dim;

  const float* row(Py_ssize_t i) const { return data + i * dim; }
};

// Turns the bits of a float so that, unsigned, they fall as the number rises; or turns them back.
inline uint32_t Turned(uint32_t bits) { return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu; }

// A scored row as an integer that sorts as the results must: best score, then lower row.
inline uint64_t Key(float score, Py_ssize_t row) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return uint64_t{Turned(bits)} << 32 | static_cast<uint32_t>(row);
}

inline int64_t RowOf(uint64_t key) { return static_cast<uint32_t>(key); }

inline float ScoreOf(uint64_t key) {
  const uint32_t bits = Turned(static_cast<uint32_t>(key >> 32));
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// The best k of the rows that are scored one after the other.
class Best {
 public:
  // Up to `n_held` keys are held at once; where rows may repeat, it must be all.
  Best(size_t k, size_t n_held) : k_(k), n_held_(std::max(n_held, k + 1)) { keys_.reserve(n_held_); }

  void Clear() {
    keys_.clear();
    worst_ = ~uint64_t{0};
  }

  void Add(uint64_t key) {
    if (key > worst_) return;
    if (keys_.size() == n_held_) DropAllButBest();
    keys_.push_back(key);
  }

  // Writes the rows of the best, in any order, and returns how many there are.
  size_t WriteRows(int64_t* rows) {
    if (keys_.size() > k_) DropAllButBest();
    std::transform(keys_.begin(), keys_.end(), rows, RowOf);
    return keys_.size();
  }

  // Writes rows and scores, best first and repeated ones once; -1 and -inf where there are no more.
  void Write(int64_t* rows, float* scores) {
    const size_t n = std::min(k_, keys_.size());
    auto end = AreSoonSorted() ? std::unique(keys_.begin(), keys_.end()) : SortedUpTo(n);
    if (end < keys_.begin() + n && n < keys_.size()) end = SortedUpTo(keys_.size());
    end = std::min(end, keys_.begin() + n);
    std::fill(std::transform(keys_.begin(), end, rows, RowOf), rows + k_, -1);
    std::fill(std::transform(keys_.begin(), end, scores, ScoreOf), scores + k_,
              -std::numeric_limits<float>::infinity());
  }

 private:
  using Keys = std::vector<uint64_t>;

  void DropAllButBest() {
    std::nth_element(keys_.begin(), keys_.begin() + (k_ - 1), keys_.end());
    keys_.resize(k_);
    worst_ = keys_.back();
  }

  // Sorts all keys if few lie far from their places, as where an index proposed them in its order.
  bool AreSoonSorted() {
    size_t n_moves = kMovesPerKey * keys_.size();
    for (size_t i = 1; i < keys_.size(); ++i) {
      const uint64_t key = keys_[i];
      size_t place = i;
      for (; place > 0 && keys_[place - 1] > key; --place) keys_[place] = keys_[place - 1];
      keys_[place] = key;
      if (i - place > n_moves) return false;
      n_moves -= i - place;
    }
    return true;
  }

  // Sorts the n best keys to the front, and returns the end of the different ones among them.
  Keys::iterator SortedUpTo(size_t n) {
    if (n < keys_.size()) std::nth_element(keys_.begin(), keys_.begin() + n, keys_.end());
    std::sort(keys_.begin(), keys_.begin() + n);
    return std::unique(keys_.begin(), keys_.begin() + n);
  }

  const size_t k_;
  const size_t n_held_;
  uint64_t worst_ = ~uint64_t{0};  // nothing behind it is among the best
  Keys keys_;
};

// Vectors in cells, of which a query looks into those whose centres promise most.
struct Cells {
  Py_ssize_t n;
  Py_ssize_t dim;
  const int8_t* centers;
  const int32_t* members;  // rows, cell after cell
  const int64_t* starts;   // where in `members` each cell begins, and where the last one ends
  const int8_t* coarse;    // their vectors in bytes, in the same order
};

// The loops as they are compiled for one generation of processors.
struct Loops {
  void (*add_rows)(const Vectors&, const float* query, const int64_t* rows, Py_ssize_t n, Best&);
  void (*add_range)(const Vectors&, const float* query, Py_ssize_t start, Py_ssize_t end,
                    const uint8_t* eligible, Best&);
  void (*add_eligible)(const Vectors&, const float* query, const uint8_t* eligible, Best&);
  void (*add_cells)(const Cells&, const int16_t* query, const uint8_t* eligible,
                    const int64_t* steps, Py_ssize_t n_steps, int64_t* n_seen, int64_t* n_kept,
                    Best&);
};

namespace any_processor {
#include "_exact_loops.h"
constexpr Loops kLoops{AddRows, AddRange, AddEligible, AddCells};
}  // namespace any_processor

#ifdef HAS_GENERATIONS
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "_exact_loops.h"
constexpr Loops kLoops{AddRows, AddRange, AddEligible, AddCells};
}  // namespace avx2
#pragma GCC target("avx512f,avx512bw")
namespace avx512 {
#include "_exact_loops.h"
constexpr Loops kLoops{AddRows, AddRange, AddEligible, AddCells};
}  // namespace avx512
#pragma GCC pop_options
#endif

// The loops for the processor at hand.
const Loops& TheLoops() {
#ifdef HAS_GENERATIONS
  if (__builtin_cpu_supports("avx512bw")) return avx512::kLoops;
  if (__builtin_cpu_supports("avx2")) return avx2::kLoops;
#endif
  return any_processor::kLoops;
}

// A set of numbers, made for a few hundred: half of its places stay empty.
class FewRows {
 public:
  FewRows(const int64_t* rows, size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    places_.assign(size, kEmpty);
    for (size_t i = 0; i < n; ++i) places_[PlaceOf(rows[i])] = rows[i];
  }

  bool Has(int64_t row) const { return places_[PlaceOf(row)] == row && row != kEmpty; }

 private:
  static constexpr int64_t kEmpty = -1;

  // Where a row is, or would be.
  size_t PlaceOf(int64_t row) const {
    const size_t last = places_.size() - 1;
    // The upper half of a product with an odd number spreads rows that lie close together.
    size_t place = (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u >> 32) & last;
    while (places_[place] != kEmpty && places_[place] != row) place = (place + 1) & last;
    return place;
  }

  std::vector<int64_t> places_;
};

// The format codes of arrays whose items are read as T. NumPy's for int64 depends on the platform.
template <typename T>
constexpr const char* kCodes = "";
template <>
constexpr const char* kCodes<float> = "f";
template <>
constexpr const char* kCodes<int64_t> = "lq";
template <>
constexpr const char* kCodes<int32_t> = "il";
template <>
constexpr const char* kCodes<uint32_t> = "IL";
template <>
constexpr const char* kCodes<int8_t> = "b";
template <>
constexpr const char* kCodes<uint8_t> = "?B";

// The memory of a NumPy array, lent for as long as this lives.
class Array {
 public:
  // In C order; `flags` ask for more.
  explicit Array(PyObject* array, int flags = 0)
      : is_lent_(PyObject_GetBuffer(array, &view_, PyBUF_ND | PyBUF_FORMAT | flags) == 0) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (is_lent_) PyBuffer_Release(&view_);
  }

  // Whether it has so many dimensions, and items that are T.
  template <typename T>
  bool Is(int ndim) const {
    return is_lent_ && view_.ndim == ndim && view_.itemsize == Py_ssize_t{sizeof(T)} &&
           IsOneOf(kCodes<T>);
  }
  Py_ssize_t n() const { return view_.shape[0]; }
  Py_ssize_t width() const { return view_.shape[1]; }

  template <typename T>
  T* items() const {
    return static_cast<T*>(view_.buf);
  }
  template <typename T>
  T* line(Py_ssize_t i) const {
    return items<T>() + i * width();
  }

 private:
  // Whether the format is one of these codes and no more: more tells of another order of bytes.
  bool IsOneOf(const char* codes) const {
    const char* const code = view_.format;
    return code != nullptr && code[0] != '\0' && code[1] == '\0' &&
           std::strchr(codes, code[0]) != nullptr;
  }

  Py_buffer view_ = {};
  const bool is_lent_;
};

// Embeddings, queries, and where the answers go.
struct Task {
  explicit Task(PyObject* const* arguments)
      : embeddings(arguments[0]),
        queries(arguments[1]),
        best_rows(arguments[2], PyBUF_WRITABLE),
        best_scores(arguments[3], PyBUF_WRITABLE) {}

  bool Fits() const {
    return embeddings.Is<float>(2) && queries.Is<float>(2) && best_rows.Is<int64_t>(2) &&
           best_scores.Is<float>(2) && queries.width() == embeddings.width() &&
           best_rows.n() == queries.n() && best_scores.n() == queries.n() &&
           best_rows.width() == best_scores.width() && best_rows.width() > 0 &&
           embeddings.n() <= kMaxRows;
  }
  Vectors vectors() const {
    return {embeddings.line<float>(0), embeddings.n(), embeddings.width()};
  }
  size_t k() const { return best_rows.width(); }

  // Answers each query with the best of the rows that `add` adds for it.
  template <typename AddTo>
  void Answer(Best& best, AddTo add) const {
    for (Py_ssize_t i = 0; i < queries.n(); ++i) {
      best.Clear();
      add(queries.line<float>(i), i, best);
      best.Write(best_rows.line<int64_t>(i), best_scores.line<float>(i));
    }
  }

  const Array embeddings, queries, best_rows, best_scores;
};

PyObject* RefuseArrays() {
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the arrays do not fit one another");
  return nullptr;
}

// Does what may take long or want memory; other threads run while it takes long.
template <typename Work>
PyObject* Run(bool is_long, Work work) {
  PyThreadState* const state = is_long ? PyEval_SaveThread() : nullptr;
  bool has_memory = true;
  try {
    work();
  } catch (const std::bad_alloc&) {
    has_memory = false;
  } catch (const std::length_error&) {  // more than any memory could hold
    has_memory = false;
  }
  if (is_long) PyEval_RestoreThread(state);
  if (!has_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

bool Expect(Py_ssize_t expected, Py_ssize_t found, const char* function) {
  if (found == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", function, expected, found);
  return false;
}

// Copies those of n numbers that are not excluded, and returns how many there are.
template <typename T>
Py_ssize_t CopyOthers(const T* numbers, Py_ssize_t n, const FewRows& excluded, int64_t* others) {
  Py_ssize_t n_copied = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    others[n_copied] = numbers[i];
    n_copied += !excluded.Has(numbers[i]);
  }
  return n_copied;
}

PyObject* Rescore(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(6, n_arguments, "rescore")) return nullptr;
  const Task task(arguments);
  const Array rows(arguments[4]), excluded(arguments[5]);
  const bool are_short = rows.Is<uint32_t>(2);
  if (!task.Fits() || !(are_short || rows.Is<int64_t>(2)) || rows.n() != task.queries.n() ||
      !excluded.Is<int64_t>(2) || excluded.n() != rows.n()) {
    return RefuseArrays();
  }
  const Vectors vectors = task.vectors();
  const Loops& loops = TheLoops();
  return Run(rows.n() * rows.width() * vectors.dim > kShortWork, [&] {
    Best best(task.k(), rows.width());
    std::vector<int64_t> others(rows.width());
    task.Answer(best, [&](const float* query, Py_ssize_t i, Best& found) {
      const FewRows dropped(excluded.line<int64_t>(i), excluded.width());
      const Py_ssize_t n =
          are_short ? CopyOthers(rows.line<uint32_t>(i), rows.width(), dropped, others.data())
                    : CopyOthers(rows.line<int64_t>(i), rows.width(), dropped, others.data());
      loops.add_rows(vectors, query, others.data(), n, found);
    });
  });
}

PyObject* Scan(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(5, n_arguments, "scan")) return nullptr;
  const Task task(arguments);
  const Array eligible(arguments[4]);
  if (!task.Fits() || !eligible.Is<uint8_t>(1) ||
      (eligible.n() != 0 && eligible.n() != task.embeddings.n())) {
    return RefuseArrays();
  }
  const Vectors vectors = task.vectors();
  const Loops& loops = TheLoops();
  return Run(task.queries.n() * vectors.n * vectors.dim > kShortWork, [&] {
    Best best(task.k(), 2 * task.k() + kRowsInAPart);
    task.Answer(best, [&](const float* query, Py_ssize_t, Best& found) {
      if (eligible.n() == 0) {
        loops.add_range(vectors, query, 0, vectors.n, nullptr, found);
      } else {
        loops.add_eligible(vectors, query, eligible.items<uint8_t>(), found);
      }
    });
  });
}

// Writes a query, times the scales of a vector in bytes, in the largest whole numbers whose sum of
// products with bytes cannot overflow.
void WriteCoarse(const float* query, const float* scales, std::vector<int16_t>& coarse) {
  const size_t dim = coarse.size();
  const auto scaled = [&](size_t i) { return double{query[i]} * scales[i]; };
  double largest = 0;
  for (size_t i = 0; i < dim; ++i) largest = std::max(largest, std::abs(scaled(i)));
  const double limit = std::min<double>(std::numeric_limits<int16_t>::max(),
                                        std::numeric_limits<int32_t>::max() / 128 / dim);
  const double factor = largest > 0 ? limit / largest : 0;
  for (size_t i = 0; i < dim; ++i) coarse[i] = std::lrint(scaled(i) * factor);
}

// Whether there are numbers, from 1 to a limit, each larger than the one before.
bool Rise(const Array& numbers, Py_ssize_t limit) {
  int64_t before = 0;
  for (Py_ssize_t i = 0; i < numbers.n(); ++i) {
    if (numbers.items<int64_t>()[i] <= before) return false;
    before = numbers.items<int64_t>()[i];
  }
  return numbers.n() > 0 && before <= limit;
}

PyObject* ScanCells(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(14, n_arguments, "scan_cells")) return nullptr;
  const Task task(arguments);
  const Array eligible(arguments[4]), centers(arguments[5]), members(arguments[6]);
  const Array starts(arguments[7]), coarse(arguments[8]), scales(arguments[9]);
  const Array steps(arguments[10]);
  const Array n_seen(arguments[11], PyBUF_WRITABLE), n_kept(arguments[12], PyBUF_WRITABLE);
  const Array proposed(arguments[13], PyBUF_WRITABLE);
  if (!task.Fits()) return RefuseArrays();
  const Py_ssize_t n = task.embeddings.n(), dim = task.embeddings.width();
  if (!eligible.Is<uint8_t>(1) || !centers.Is<int8_t>(2) || !members.Is<int32_t>(1) ||
      !starts.Is<int64_t>(1) || !coarse.Is<int8_t>(2) || !scales.Is<float>(1) ||
      !steps.Is<int64_t>(1) || !n_seen.Is<int64_t>(2) || !n_kept.Is<int64_t>(2) ||
      !proposed.Is<int64_t>(1) || eligible.n() != n || members.n() != n || coarse.n() != n ||
      coarse.width() != dim || centers.width() != dim || scales.n() != dim ||
      starts.n() != centers.n() + 1 || n_seen.n() != task.queries.n() ||
      n_kept.n() != task.queries.n() || n_seen.width() != steps.n() ||
      n_kept.width() != steps.n() || !Rise(steps, centers.n()) ||
      proposed.n() < Py_ssize_t(task.k())) {
    return RefuseArrays();
  }
  const Vectors vectors = task.vectors();
  const Loops& loops = TheLoops();
  const Cells cells{centers.n(),
                    dim,
                    centers.line<int8_t>(0),
                    members.items<int32_t>(),
                    starts.items<int64_t>(),
                    coarse.line<int8_t>(0)};
  return Run(true, [&] {
    std::vector<int16_t> coarse_query(dim);
    Best nearly_best(proposed.n(), 2 * proposed.n() + kRowsInAPart);
    Best best(task.k(), proposed.n());
    task.Answer(best, [&](const float* query, Py_ssize_t i, Best& found) {
      WriteCoarse(query, scales.items<float>(), coarse_query);
      nearly_best.Clear();
      loops.add_cells(cells, coarse_query.data(), eligible.items<uint8_t>(),
                      steps.items<int64_t>(), steps.n(), n_seen.line<int64_t>(i),
                      n_kept.line<int64_t>(i), nearly_best);
      const size_t n_proposed = nearly_best.WriteRows(proposed.items<int64_t>());
      loops.add_rows(vectors, query, proposed.items<int64_t>(), n_proposed, found);
    });
  });
}

PyObject* AreFinite(PyObject*, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (!Expect(2, n_arguments, "are_finite")) return nullptr;
  const Array vectors(arguments[0]);
  PyErr_Clear();  // what lends no memory in C order is none of them
  const Py_ssize_t dim = PyLong_AsSsize_t(arguments[1]);
  if (dim == -1 && PyErr_Occurred()) return nullptr;
  if (!vectors.Is<float>(2) || vectors.width() != dim) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < vectors.n(); ++i) {
    const float* const vector = vectors.line<float>(i);
    if (!std::isfinite(any_processor::InnerProduct(vector, vector, dim))) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

constexpr char kRescoreDoc[] =
    "Score the rows proposed for each query, and write the best of them, best first.\n\n"
    "All arrays are in C order. Other threads run while it takes long.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    best_rows: (n_queries, k) int64, written: each row once, -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n"
    "    rows: (n_queries, n) int64 or uint32; what is no row of the embeddings is left out.\n"
    "    excluded: (n_queries, n_excluded) int64, the rows that are left out of each query's; they\n"
    "        may repeat, and -1 is none.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

constexpr char kScanDoc[] =
    "Score all rows, or the eligible ones, for each query, and write the best, best first.\n\n"
    "All arrays are in C order. Other threads run while it takes long.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    best_rows: (n_queries, k) int64, written: -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n"
    "    eligible: (n_candidates,) bool; empty if all are.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another.\n";

constexpr char kScanCellsDoc[] =
    "Score the eligible rows of the cells whose centres have the largest inner products with a\n"
    "query's, coarsely, and those that seem best exactly; write the best of them, best first.\n\n"
    "All arrays are in C order. Other threads run meanwhile.\n\n"
    "Args:\n"
    "    embeddings: (n_candidates, dim) float32.\n"
    "    queries: (n_queries, dim) float32.\n"
    "    best_rows: (n_queries, k) int64, written: -1 where there are no more.\n"
    "    best_scores: (n_queries, k) float32, written: -inf where there are no more.\n"
    "    eligible: (n_candidates,) bool.\n"
    "    centers: (n_cells, dim) int8, about their centres divided by the scales.\n"
    "    members: (n_candidates,) int32, every row once, those of a cell together.\n"
    "    starts: (n_cells + 1,) int64, where each cell begins in members, and where the last ends.\n"
    "    coarse: (n_candidates, dim) int8, about the embeddings of the members divided by the scales.\n"
    "    scales: (dim,) float32.\n"
    "    steps: (n_steps,) int64, rising numbers of cells; the last is how many to look into.\n"
    "    n_seen: (n_queries, n_steps) int64, written: the rows of the cells up to each step.\n"
    "    n_kept: (n_queries, n_steps) int64, written: the eligible ones among them.\n"
    "    proposed: (n,) int64, at least k, written: room for what is scored exactly for a query.\n\n"
    "Raises:\n"
    "    ValueError: if the arrays do not fit one another; what is in members and starts is trusted.\n";

constexpr char kAreFiniteDoc[] =
    "Tell whether something is vectors of a dimension whose squared norms are finite.\n\n"
    "Args:\n"
    "    vectors: (n, dim) float32 in C order; of anything else this is not said.\n"
    "    dim: the dimension.\n";

template <typename Function>
PyCFunction AsMethod(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"rescore", AsMethod(Rescore), METH_FASTCALL, kRescoreDoc},
    {"scan", AsMethod(Scan), METH_FASTCALL, kScanDoc},
    {"scan_cells", AsMethod(ScanCells), METH_FASTCALL, kScanCellsDoc},
    {"are_finite", AsMethod(AreFinite), METH_FASTCALL, kAreFiniteDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_exact", "The inner loops of exact.py.", 0, methods,
    nullptr,               nullptr,  nullptr,                        nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__exact() { return PyModuleDef_Init(&module); }
