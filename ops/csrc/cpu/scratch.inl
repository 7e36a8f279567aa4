// Scratch memory of the kernels, aligned to cache lines. Throws OutOfMemory where there is none.

inline void* aligned_memory(size_t bytes) {  // a multiple of 64
  void* const memory = std::aligned_alloc(64, bytes);
  if (!memory) throw OutOfMemory{bytes};
  return memory;
}

// Zeroed memory, one allocation per range of tasks.
struct Arena {
  char* base = nullptr;
  size_t used = 0, size = 0;
  explicit Arena(size_t bytes) : size((bytes + 127) / 64 * 64) {
    base = static_cast<char*>(aligned_memory(size));
    std::memset(base, 0, size);
  }
  ~Arena() { std::free(base); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};
