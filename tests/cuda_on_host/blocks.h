// How a launch runs on the host (cuda_runtime_api.h).
//
// To ThreadSanitizer a fiber is a thread, and a change from one to another orders nothing (no_sync). What
// orders is said where it happens: a launch begins before its threads and ends after them, a barrier's
// arrivals are before its departures. Threads of the system in place of fibers would take a hundred times as
// long at a barrier and show less, since blocks that run one after the other would be ordered. The functions
// here are not watched, as they belong to no fiber.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <link.h>
#include <sanitizer/tsan_interface.h>

#include <exception>
#include <random>
#include <set>
#include <thread>
#define CUDA_ON_HOST_UNWATCHED __attribute__((no_sanitize("thread"), noipa))
#else
#define CUDA_ON_HOST_UNWATCHED
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace cuda_on_host {

// A place in the source that holds a barrier.
struct Place {
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Place& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

// With the folder that the file is in.
inline std::string text(const Place& place) {
  const std::string path = place.file;
  const size_t folder = path.rfind('/', path.rfind('/') - 1);
  return (folder == std::string::npos ? path : path.substr(folder + 1)) + ":" + std::to_string(place.line);
}

inline std::string text(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

// swapcontext asks the system for the signal mask at every change, which takes most of a test's time. Where
// no sanitizer wants to know of the change, a few registers are enough.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

using Context = void*;  // the stack's pointer, on top of what must outlive a call

__attribute__((naked, noinline)) inline void swap(Context*, const Context*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

// On a stack that ends at `end`: about to enter a function without arguments.
inline void prepare(Context& context, char*, char* end, void (*enter)()) {
  void** top = reinterpret_cast<void**>(end) - 8;  // as if just called: 8 bytes beside a multiple of 16
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(enter);
  context = top;
}

#else

using Context = ucontext_t;

inline void swap(Context* from, const Context* to) { swapcontext(from, to); }

inline void prepare(Context& context, char* begin, char* end, void (*enter)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = begin;
  context.uc_stack.ss_size = end - begin;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  context.uc_stack = {};  // AddressSanitizer would forget what it knows of the stack at each change
}

#endif

struct Fiber {
  Context context;
  Place waits_at;
  bool done = false;
  void* sanitizer = nullptr;  // what ThreadSanitizer calls a fiber
};

inline Context scheduler;
inline Fiber* running;
inline void (*body)(const void*);
inline const void* body_argument;
inline unsigned char* dynamic_shared;

inline constexpr unsigned kMostThreads = 1024;
inline constexpr size_t kStack = 256 << 10;  // enough for a sanitizer's report; the system gives what is used

// What ThreadSanitizer is told, and nothing without it.
#ifdef __SANITIZE_THREAD__

inline void* scheduler_of_sanitizer;
inline char begin_order, end_order;  // of a launch
// Of the multiprocessor that runs. Two barriers in a row take turns, so that a thread that is the last to
// leave one does not learn what another did on the way to the next.
inline char* barrier_order;
inline int turn;
// The barrier met last orders nothing: it is CUDA_ON_HOST_DROP, as "folder/file.cuh:12". So tests see that
// its loss would be seen.
inline bool dropped;
inline std::set<std::string> places;  // of the barriers met

CUDA_ON_HOST_UNWATCHED inline void note_barrier(const Place& place) {
  static const char* const drop = std::getenv("CUDA_ON_HOST_DROP");
  const std::string name = text(place);
  places.insert(name);
  dropped = drop != nullptr && name == drop;
  turn ^= 1;
}

CUDA_ON_HOST_UNWATCHED inline void change_to_scheduler() {
  __tsan_switch_to_fiber(scheduler_of_sanitizer, __tsan_switch_to_fiber_no_sync);
  swap(&running->context, &scheduler);
}

CUDA_ON_HOST_UNWATCHED inline void change_to(Fiber& fiber) {
  running = &fiber;
  if (fiber.sanitizer == nullptr) fiber.sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
  swap(&scheduler, &fiber.context);
}

CUDA_ON_HOST_UNWATCHED inline void wait_at(Place place) {
  running->waits_at = place;
  __tsan_release(&barrier_order[turn]);
  const int mine = turn;
  change_to_scheduler();
  if (!dropped) __tsan_acquire(&barrier_order[mine]);
}

CUDA_ON_HOST_UNWATCHED inline void enter() {
  __tsan_acquire(&begin_order);
  body(body_argument);
  __tsan_release(&end_order);
  running->done = true;
  change_to_scheduler();
}

// Statically allocated shared memory holds anything when a block begins: NaN here. It is all that is
// thread_local in the module of the kernels.
CUDA_ON_HOST_UNWATCHED inline void poison_shared() {
  static const char in_this_module = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void*) {
        bool ours = false;
        size_t size = 0;
        for (int i = 0; i < module->dlpi_phnum; ++i) {
          const ElfW(Phdr) & part = module->dlpi_phdr[i];
          const uintptr_t from = module->dlpi_addr + part.p_vaddr;
          const auto here = reinterpret_cast<uintptr_t>(&in_this_module);
          if (part.p_type == PT_LOAD && here - from < part.p_memsz) ours = true;
          if (part.p_type == PT_TLS) size = part.p_memsz;
        }
        if (ours && size > 0 && module->dlpi_tls_data != nullptr)
          std::memset(module->dlpi_tls_data, 0xff, size);
        return ours ? 1 : 0;
      },
      nullptr);
}

#else

inline void note_barrier(const Place&) {}
inline void change_to_scheduler() { swap(&running->context, &scheduler); }
inline void change_to(Fiber& fiber) {
  running = &fiber;
  swap(&scheduler, &fiber.context);
}
inline void wait_at(Place place) {
  running->waits_at = place;
  change_to_scheduler();
}
inline void enter() {
  body(body_argument);
  running->done = true;
  change_to_scheduler();
}

#endif

// After every thread has gone on to its next barrier or its end: that they all met the same. A GPU may let it
// pass that one has ended; it is an error here as in CUDA's rules.
CUDA_ON_HOST_UNWATCHED inline bool all_done(const Fiber* fibers, unsigned threads) {
  const Fiber *waits = nullptr, *other = nullptr;
  bool ended = false;
  for (const Fiber* fiber = fibers; fiber < fibers + threads; ++fiber) {
    ended = ended || fiber->done;
    if (fiber->done) continue;
    if (waits == nullptr) waits = fiber;
    if (!(fiber->waits_at == waits->waits_at)) other = fiber;
  }
  if (waits == nullptr) return true;
  if (ended || other != nullptr)
    throw std::logic_error("cuda_on_host: in block " + text(blockIdx) + " thread " +
                           std::to_string(waits - fibers) + " waits at the barrier " + text(waits->waits_at) +
                           ", but another thread " +
                           (other ? "waits at " + text(other->waits_at) : "has ended") +
                           "; every thread of a block must meet every barrier");
  note_barrier(waits->waits_at);
  return false;
}

// Fibers and their stacks, which blocks use one after the other.
struct Fibers {
  std::vector<Fiber> fibers;
  char barrier_order[2];
  char* stacks = nullptr;

  // So many fibers that are about to enter the kernel.
  CUDA_ON_HOST_UNWATCHED Fiber* start(unsigned threads) {
    if (stacks == nullptr) {
      void* mapped = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      stacks = static_cast<char*>(mapped);
    }
    // Never fewer again: ThreadSanitizer knows only so many.
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[t];
      fiber.done = false;
      prepare(fiber.context, stacks + t * kStack, stacks + (t + 1) * kStack, enter);
    }
    return fibers.data();
  }
};

// Runs the block's threads in this order, from barrier to barrier.
CUDA_ON_HOST_UNWATCHED inline void run_block(Fiber* fibers, const std::vector<unsigned>& order) {
  do {
    for (unsigned t : order) {
      if (fibers[t].done) continue;
      threadIdx.x = t % blockDim.x;
      threadIdx.y = t / blockDim.x % blockDim.y;
      threadIdx.z = t / blockDim.x / blockDim.y;
      change_to(fibers[t]);
    }
  } while (!all_done(fibers, static_cast<unsigned>(order.size())));
}

// A kernel's address, which stands for it.
template <class... Arguments>
const void* address(void (*kernel)(Arguments...)) {
  return reinterpret_cast<const void*>(kernel);
}

// Dynamic shared memory beyond what every kernel gets (48 KiB) has to be asked for, and no more than sm_86,
// sm_89 and sm_120 have (99 KiB); both count a kernel's static shared memory, for which 3 KiB and more are
// left.
inline constexpr size_t kShared = 44 << 10, kMostShared = 96 << 10;
inline std::map<const void*, size_t> allowed_shared;
inline bool allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kMostShared) return false;
  allowed_shared[kernel] = bytes;
  return true;
}

inline void check_launch(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes) {
  const size_t in_block = static_cast<size_t>(threads.x) * threads.y * threads.z;
  if (blocks.x < 1 || blocks.y < 1 || blocks.z < 1 || blocks.x > INT32_MAX || blocks.y > 65535 ||
      blocks.z > 65535 || in_block < 1 || in_block > kMostThreads || threads.z > 64)
    throw std::logic_error("cuda_on_host: no GPU launches a grid of " + text(blocks) + " blocks of " +
                           text(threads) + " threads");
  const auto found = allowed_shared.find(kernel);
  const size_t allowed = found == allowed_shared.end() ? kShared : std::max(kShared, found->second);
  if (shared_bytes > allowed)
    throw std::logic_error("cuda_on_host: a kernel is launched with " + std::to_string(shared_bytes) +
                           " bytes of dynamic shared memory, and " + std::to_string(allowed) +
                           " are allowed; see cudaFuncSetAttribute");
}

// Poisoned, since on a GPU it holds what the last block left; of exactly the size asked for.
CUDA_ON_HOST_UNWATCHED inline std::unique_ptr<unsigned char[]> new_shared(size_t bytes) {
  std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes]);
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

#ifdef __SANITIZE_THREAD__

// As many multiprocessors, each with fibers of its own. Blocks on one are ordered like those of a GPU with so
// few; those on different ones are not, and two that follow each other never share one.
inline constexpr unsigned kMultiprocessors = 3;

// Blocks from the last to the first and their threads in a drawn order, so that a result that depends on the
// order differs from other builds'. Each block has its own thread of the system, and with it its own shared
// memory; to join it orders nothing, as the block's fibers are others.
CUDA_ON_HOST_UNWATCHED inline void run_blocks(unsigned threads, size_t shared_bytes) {
  static Fibers multiprocessors[kMultiprocessors];
  static std::minstd_rand random;
  static unsigned m = 0;
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // freed when all is over
  for (int64_t b = static_cast<int64_t>(gridDim.x) * gridDim.y * gridDim.z - 1; b >= 0; --b) {
    blockIdx.x = static_cast<unsigned>(b % gridDim.x);
    blockIdx.y = static_cast<unsigned>(b / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(b / gridDim.x / gridDim.y);
    std::shuffle(order.begin(), order.end(), random);
    m = (m + 1 + random() % (kMultiprocessors - 1)) % kMultiprocessors;
    shared.push_back(new_shared(shared_bytes));
    dynamic_shared = shared.back().get();
    std::exception_ptr error;
    std::thread([&] {
      try {
        poison_shared();
        scheduler_of_sanitizer = __tsan_get_current_fiber();
        __tsan_release(&begin_order);
        barrier_order = multiprocessors[m].barrier_order;
        run_block(multiprocessors[m].start(threads), order);
      } catch (...) {
        error = std::current_exception();
      }
    }).join();
    if (error) std::rethrow_exception(error);
  }
  __tsan_acquire(&end_order);
}

#else

inline void run_blocks(unsigned threads, size_t shared_bytes) {
  static Fibers fibers;
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        const auto shared = new_shared(shared_bytes);
        dynamic_shared = shared.get();
        blockIdx = dim3(x, y, z);
        run_block(fibers.start(threads), order);
      }
}

#endif

template <class Body>
CUDA_ON_HOST_UNWATCHED void launch(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes,
                                   const Body& run) {
  check_launch(kernel, blocks, threads, shared_bytes);
  body = [](const void* argument) { (*static_cast<const Body*>(argument))(); };
  body_argument = &run;
  gridDim = blocks;
  blockDim = threads;
  run_blocks(threads.x * threads.y * threads.z, shared_bytes);
}

}  // namespace cuda_on_host
