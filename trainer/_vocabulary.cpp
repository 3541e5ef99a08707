// The hash table of vocabulary.py: the rows of texts that lie end to end in one buffer.
//
// It holds row numbers alone, in one array that nobody writes to once it is made, so that forked
// processes share it, and compares a text that is looked up with the buffer itself.

#define Py_LIMITED_API 0x030B0000  // with buffers: one build serves every later Python
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr uint32_t kEmpty = ~uint32_t{0};  // a place without a row
constexpr size_t kTextsAhead = 64;         // whose places are fetched from memory side by side

// Bytes that somebody else owns.
struct Text {
  const char* data;
  size_t size;

  bool operator==(const Text& other) const {
    return size == other.size && std::memcmp(data, other.data, size) == 0;
  }
};

// SipHash with one round a word and three at the end, as Python hashes its own strings (Aumasson
// and Bernstein 2012, "SipHash: a fast short-input PRF"): who does not know the key cannot choose
// ids that crowd in one place.
class SipHash {
 public:
  explicit SipHash(const uint64_t (&key)[2]) : key_{key[0], key[1]} {}

  uint64_t operator()(const Text& text) const {
    uint64_t v[4] = {key_[0] ^ 0x736f6d6570736575u, key_[1] ^ 0x646f72616e646f6du,
                     key_[0] ^ 0x6c7967656e657261u, key_[1] ^ 0x7465646279746573u};
    size_t i = 0;
    for (; i + 8 <= text.size; i += 8) Absorb(Word(text.data + i, 8), v);
    Absorb(Word(text.data + i, text.size - i) | uint64_t{text.size} << 56, v);
    v[2] ^= 0xff;
    for (int round = 0; round < 3; ++round) Round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
  }

 private:
  static uint64_t Word(const char* data, size_t size) {
    uint64_t word = 0;
    std::memcpy(&word, data, size);
    return word;
  }

  static void Absorb(uint64_t word, uint64_t (&v)[4]) {
    v[3] ^= word;
    Round(v);
    v[0] ^= word;
  }

  static uint64_t Turned(uint64_t word, int bits) { return word << bits | word >> (64 - bits); }

  static void Round(uint64_t (&v)[4]) {
    v[0] += v[1];
    v[1] = Turned(v[1], 13) ^ v[0];
    v[0] = Turned(v[0], 32);
    v[2] += v[3];
    v[3] = Turned(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = Turned(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = Turned(v[1], 17) ^ v[2];
    v[2] = Turned(v[2], 32);
  }

  uint64_t key_[2];
};

// Places for rows, of which at least half stay empty. A text's row is at the place that its hash
// says, or, if others came first, at one of those behind it.
class Places {
 public:
  Places(const char* text, const int64_t* offsets, size_t n, const uint64_t (&key)[2])
      : text_(text), offsets_(offsets), hash_(key) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    rows_.assign(size, kEmpty);
    uint64_t hashes[kTextsAhead];
    for (size_t start = 0; start < n && repeated_ < 0; start += kTextsAhead) {
      const size_t n_here = std::min(n - start, kTextsAhead);
      for (size_t i = 0; i < n_here; ++i) hashes[i] = Announced(TextOf(start + i));
      for (size_t i = 0; i < n_here && repeated_ < 0; ++i) Add(start + i, hashes[i]);
    }
  }

  // The first row that holds the text of one before it; -1 if there is none.
  int64_t repeated() const { return repeated_; }

  // The hash of a text that will soon be looked for, whose place is fetched meanwhile.
  uint64_t Announced(const Text& text) const {
    const uint64_t hash = hash_(text);
    __builtin_prefetch(&rows_[hash & (rows_.size() - 1)]);
    return hash;
  }

  // The row of a text, -1 if it has none.
  int64_t RowOf(const Text& text, uint64_t hash) const {
    const uint32_t row = rows_[PlaceOf(text, hash)];
    return row == kEmpty ? -1 : int64_t{row};
  }

 private:
  Text TextOf(size_t row) const {
    return {text_ + offsets_[row], static_cast<size_t>(offsets_[row + 1] - offsets_[row])};
  }

  void Add(size_t row, uint64_t hash) {
    uint32_t& place = rows_[PlaceOf(TextOf(row), hash)];
    if (place != kEmpty) {
      repeated_ = row;
    } else {
      place = static_cast<uint32_t>(row);
    }
  }

  // Where the row of a text is, or would be.
  size_t PlaceOf(const Text& text, uint64_t hash) const {
    const size_t last = rows_.size() - 1;
    size_t place = hash & last;
    while (rows_[place] != kEmpty && !(TextOf(rows_[place]) == text)) place = (place + 1) & last;
    return place;
  }

  const char* const text_;
  const int64_t* const offsets_;
  const SipHash hash_;
  std::vector<uint32_t> rows_;
  int64_t repeated_ = -1;
};

// Memory that a Python object lends for as long as this lives.
class Lent {
 public:
  explicit Lent(PyObject* owner, int flags = PyBUF_SIMPLE)
      : is_lent_(PyObject_GetBuffer(owner, &view_, flags) == 0) {}
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    if (is_lent_) PyBuffer_Release(&view_);
  }

  bool is_lent() const { return is_lent_; }
  Py_ssize_t size() const { return view_.len; }
  template <typename T>
  T* items() const {
    return static_cast<T*>(view_.buf);
  }

 private:
  Py_buffer view_ = {};
  const bool is_lent_;
};

// Strings of a list, which stay as long as this lives, whatever becomes of the list meanwhile.
class Held {
 public:
  Held() = default;
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() { Clear(); }

  // Null, with an error set, where the list has become shorter.
  PyObject* Take(PyObject* list, size_t i) {
    PyObject* const string = PyList_GetItem(list, i);
    if (string != nullptr) strings_[n_++] = Py_NewRef(string);
    return string;
  }

  void Clear() {
    while (n_ > 0) Py_DECREF(strings_[--n_]);
  }

 private:
  PyObject* strings_[kTextsAhead];
  size_t n_ = 0;
};

// What a Python object of the type holds; null until it is made.
struct Table {
  PyObject_HEAD
  Lent* offsets;
  Lent* text;
  Places* places;
};

Table* Self(PyObject* object) { return reinterpret_cast<Table*>(object); }

// Whether offsets rise from 0, or from where the texts begin, to no further than the text's end.
bool AreWithin(const Lent& offsets, const Lent& text) {
  const Py_ssize_t n = offsets.size() / Py_ssize_t{sizeof(int64_t)};
  const int64_t* const items = offsets.items<int64_t>();
  if (n < 1 || items[0] < 0 || items[n - 1] > text.size()) return false;
  for (Py_ssize_t i = 1; i < n; ++i) {
    if (items[i] < items[i - 1]) return false;
  }
  return true;
}

PyObject* New(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  if (keywords != nullptr && PyDict_Size(keywords) != 0) {
    PyErr_SetString(PyExc_TypeError, "Table takes no keyword arguments");
    return nullptr;
  }
  PyObject *offsets, *text;
  const char* key;
  Py_ssize_t key_size;
  if (!PyArg_ParseTuple(arguments, "OOy#", &offsets, &text, &key, &key_size)) return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* const self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  Table& table = *Self(self);
  uint64_t words[2];
  try {
    table.offsets = new Lent(offsets);
    table.text = table.offsets->is_lent() ? new Lent(text) : nullptr;
    if (table.text == nullptr || !table.text->is_lent()) {
      Py_DECREF(self);
      return nullptr;
    }
    if (key_size != sizeof words || !AreWithin(*table.offsets, *table.text)) {
      PyErr_SetString(PyExc_ValueError, "the offsets do not fit the text, or the key is no key");
      Py_DECREF(self);
      return nullptr;
    }
    std::memcpy(words, key, sizeof words);
    const size_t n = table.offsets->size() / sizeof(int64_t) - 1;
    if (n >= kEmpty) {
      PyErr_Format(PyExc_ValueError, "a table holds fewer than %u texts", kEmpty);
      Py_DECREF(self);
      return nullptr;
    }
    table.places =
        new Places(table.text->items<char>(), table.offsets->items<int64_t>(), n, words);
  } catch (const std::bad_alloc&) {
    Py_DECREF(self);
    return PyErr_NoMemory();
  }
  return self;
}

void Delete(PyObject* self) {
  delete Self(self)->places;
  delete Self(self)->text;
  delete Self(self)->offsets;
  PyTypeObject* const type = Py_TYPE(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

// Reads a string in UTF-8, which strings of plain ASCII are already. False if it is no string, with
// an error set; a string that UTF-8 cannot hold is read as no text.
bool Read(PyObject* string, Text& text) {
  if (!PyUnicode_Check(string)) {
    PyErr_Format(PyExc_TypeError, "a token must be a string, not %R", string);
    return false;
  }
  Py_ssize_t size;
  const char* const data = PyUnicode_AsUTF8AndSize(string, &size);
  if (data != nullptr) {
    text = {data, static_cast<size_t>(size)};
    return true;
  }
  if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return false;
  PyErr_Clear();
  text = {"", 0};
  return true;
}

PyObject* Row(PyObject* self, PyObject* string) {
  const Places& places = *Self(self)->places;
  Text text;
  if (!Read(string, text)) return nullptr;
  return PyLong_FromLongLong(places.RowOf(text, places.Announced(text)));
}

PyObject* Rows(PyObject* self, PyObject* const* arguments, Py_ssize_t n_arguments) {
  if (n_arguments != 2) {
    PyErr_Format(PyExc_TypeError, "rows takes 2 arguments, not %zd", n_arguments);
    return nullptr;
  }
  const Places& places = *Self(self)->places;
  PyObject* const strings = arguments[0];
  if (!PyList_Check(strings)) {
    PyErr_SetString(PyExc_TypeError, "tokens must be a list");
    return nullptr;
  }
  const size_t n = PyList_Size(strings);
  const Lent rows(arguments[1], PyBUF_WRITABLE);
  if (!rows.is_lent()) return nullptr;
  if (size_t(rows.size()) != n * sizeof(int64_t)) {
    PyErr_SetString(PyExc_ValueError, "rows must have an int64 for each token");
    return nullptr;
  }
  Held held;
  Text texts[kTextsAhead];
  uint64_t hashes[kTextsAhead];
  for (size_t start = 0; start < n; start += kTextsAhead) {
    const size_t n_here = std::min(n - start, kTextsAhead);
    held.Clear();
    for (size_t i = 0; i < n_here; ++i) {
      PyObject* const string = held.Take(strings, start + i);
      if (string == nullptr || !Read(string, texts[i])) return nullptr;
      hashes[i] = places.Announced(texts[i]);
    }
    for (size_t i = 0; i < n_here; ++i) {
      rows.items<int64_t>()[start + i] = places.RowOf(texts[i], hashes[i]);
    }
  }
  Py_RETURN_NONE;
}

PyObject* Repeated(PyObject* self, void*) {
  return PyLong_FromLongLong(Self(self)->places->repeated());
}

constexpr char kTableDoc[] =
    "Table(offsets, text, key, /)\n--\n\n"
    "Finds texts that lie end to end.\n\n"
    "Args:\n"
    "    offsets: (n + 1,) int64, where each text begins, and where the last one ends.\n"
    "    text: the texts in UTF-8; neither may change while this lives.\n"
    "    key: 16 bytes that nobody who chooses texts knows.\n\n"
    "Raises:\n"
    "    ValueError: if the offsets do not fit the text.\n";

constexpr char kRowDoc[] = "Return the row of a text, -1 where it is unknown.";

constexpr char kRowsDoc[] =
    "Write the rows of several texts, -1 where one is unknown.\n\n"
    "Args:\n"
    "    tokens: n texts.\n"
    "    rows: (n,) int64, written.\n\n"
    "Raises:\n"
    "    ValueError: if there is no place for as many rows.\n";

template <typename Function>
PyCFunction AsMethod(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"row", Row, METH_O, kRowDoc},
    {"rows", AsMethod(Rows), METH_FASTCALL, kRowsDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef attributes[] = {
    {"repeated", Repeated, nullptr, "The first row with the text of one before it, or -1.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>(kTableDoc)},
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Delete)},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, nullptr},
};

PyType_Spec spec = {"trainer._vocabulary.Table", sizeof(Table), 0, Py_TPFLAGS_DEFAULT, slots};

int Execute(PyObject* module) {
  PyObject* const type = PyType_FromSpec(&spec);
  if (type == nullptr) return -1;
  const int added = PyModule_AddObjectRef(module, "Table", type);
  Py_DECREF(type);
  return added;
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(Execute)},
    {0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_vocabulary", "The hash table of vocabulary.py.", 0, nullptr,
    module_slots,          nullptr,       nullptr,                            nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__vocabulary() { return PyModuleDef_Init(&module); }
