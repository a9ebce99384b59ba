// What the process does with memory that is freed.
#pragma once

namespace fastnas::cpu {

// Keeps freed memory in the process, unless FASTNAS_KEEP_MEMORY=0. A training step frees and takes the same
// hundreds of megabytes each time; glibc by default returns them to the system in between, and every step
// pays for new pages: on an EPYC, 2.4 ms for mixed_sum forward and backward (K = 8, 4 MiB each) become 10 ms,
// and plain PyTorch's 7.5 ms become 15 ms. Elsewhere than on glibc it does nothing.
void keep_freed_memory();

// Asks for huge pages in what the heap has grown by since the last call. Ops call it when they have allocated
// and not yet written: the heap grows in large steps, so most of a step is untouched then. Fewer misses of
// the TLB make a forward and backward pass of the DARTS supernet 5 % faster.
void advise_new_heap();

}  // namespace fastnas::cpu
